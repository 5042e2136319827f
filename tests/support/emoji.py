"""A dozen emoji of the real archives, and dictionaries of which one may be away."""

import os
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import pytest

from mla_ray.datasets import emoji as emoji_data
from mla_ray.datasets import emoji_tables
from mla_ray.datasets.debian import Unavailable
from mla_ray.datasets.emoji import Emoji
from mla_ray.datasets.lexicons import Source, lexicon

unpacked = lru_cache(emoji_data._read_json)


def only_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four test concepts and eight others, whatever folder is given."""
    kept = Emoji(Path(os.environ.get("MLA_DATA", "data")) / "emoji")
    folder = kept.folder.resolve()
    monkeypatch.setattr(emoji_data, "fetch", lambda package, _: folder / package.file_name)
    monkeypatch.setattr(emoji_data, "_read_json", unpacked)
    concepts = (*kept.concepts[:4], *kept.concepts[-8:])
    assert [concept.split for concept in concepts] == ["test"] * 4 + ["train"] * 8
    monkeypatch.setattr(Emoji, "concepts", concepts)


class Dictionaries:
    """Two of German: one has a word; the other has three, and is away until told otherwise.

    Each time it says so in other words.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away, self.asked = True, 0
        self.words = {
            "steady": {"octopus": "Krake"},
            "flaky": {"octopus": "Oktopus", "panda": "Panda", "koala": "Koala"},
        }
        every = [
            Source(name, {"de"}, partial(self._fetch, name), self._read) for name in self.words
        ]
        monkeypatch.setattr(emoji_tables, "lexicon", partial(lexicon, sources=every))

    def _fetch(self, name: str, language: str, folder: Path) -> list[Path]:
        if name == "flaky":
            self.asked += 1
            if self.away:
                raise Unavailable(f"connection refused, try {self.asked}")
        return [Path(name)]

    def _read(self, files: Sequence[Path], language: str) -> list[tuple[str, list[str]]]:
        return [(head, [target]) for head, target in self.words[files[0].name].items()]
