"""The languages that a server answers in: English, and those with a pack in its store."""

import asyncio
from collections.abc import Mapping

import langcodes

from mla_ray.packs.store import Listing, PackStore
from mla_ray.serving.problems import ProblemError
from mla_ray.serving.schemas import LanguageInfo, ProblemKind


class ServedLanguages:
    def __init__(self, store: PackStore) -> None:
        self._store = store
        self.listing = Listing()

    async def scan(self) -> None:
        """Look at the store anew."""
        self.listing = await asyncio.to_thread(self._store.scan)

    def resolve(self, tag: str) -> str:
        """The language that answers `tag`; a 404 problem if none does."""
        language = self.listing.resolve(tag)
        if language is None:
            detail = f"no pack for language {tag!r}; there are {', '.join(self.listing.languages)}"
            raise ProblemError(404, ProblemKind.UNKNOWN_LANGUAGE, detail)
        return language

    def infos(self, captions: Mapping[str, int]) -> list[LanguageInfo]:
        """What is known of each language; `captions` counts those in the index."""
        infos = []
        for language in self.listing.languages:
            pack = self.listing.packs.get(language)
            infos.append(
                LanguageInfo(
                    language=language,
                    name=langcodes.get(language).display_name(),
                    autonym=langcodes.get(language).autonym(),
                    native=pack is None,
                    captions=captions.get(language, 0),
                    version=pack.version if pack else None,
                    rows=pack.card.rows if pack else None,
                    metrics=pack.card.metrics if pack else {},
                )
            )
        return infos
