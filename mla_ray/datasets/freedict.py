"""FreeDict: a broad parallel corpus of words, from Debian by name, without root.

A dictionary is a Debian package that holds a dictd index and a compressed text of articles. Only
head words that the native can know are taken, and of each article only its translations. May
import: nothing of ours.
"""

import gzip
import io
import re
import subprocess
import tarfile
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Set
from functools import reduce
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

# BCP-47 to the three letters in FreeDict's package names.
LANGUAGES: Mapping[str, str] = MappingProxyType(
    {
        **{"af": "afr", "ar": "ara", "bg": "bul", "cs": "ces", "cy": "cym", "da": "dan"},
        **{"de": "deu", "el": "ell", "es": "spa", "fi": "fin", "fr": "fra", "ga": "gle"},
        **{"hi": "hin", "hr": "hrv", "hu": "hun", "id": "ind", "it": "ita", "ja": "jpn"},
        **{"la": "lat", "lt": "lit", "nb": "nor", "nl": "nld", "no": "nor", "pl": "pol"},
        **{"pt": "por", "rom": "rom", "ru": "rus", "sr": "srp", "sv": "swe", "sw": "swh"},
        **{"tr": "tur"},
    }
)
MAX_TRANSLATIONS = 4
MAX_WORDS = 3

_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_VALUE = {digit: value for value, digit in enumerate(_DIGITS)}
_WORD = re.compile(r"[^\W\d_]+")
_HEAD = re.compile(r"[^\W\d_]+(?:[ '’-][^\W\d_]+)*")
_PRONUNCIATION_OR_GRAMMAR = re.compile(r"\s+[/<\[].*")
_NUMBER = re.compile(r"^\d+\. | \d+\.$")
_COMMA_OUTSIDE_BRACKETS = re.compile(r"[,;،、，；](?![^<(\[]*[>)\]])")
_REMARK = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
# Rude, or no longer used: the mark behind a line is meant for all of it.
_MARKED = re.compile(
    r"\[(?:vulg|pej|slang|obs|archaic|dated|rare|alt|veraltet|veraltend|selten)\.?\]"
)
_LATIN_NAME = re.compile(r"\((?:zool|bot)\.\)")
# A phrase, an abbreviation or mark-up holds one of these; a word of any script does not.
_UNCLEAN = re.compile(r"[\d.…:!?\"“”„«»‹›=~*/\\|{}<>()\[\]+_@#%&$€^°→]|\s\s|^[-–]|[-–]$")
_SAID_OF_IT = re.compile(r'\{|^ +"', re.MULTILINE)


class Unavailable(RuntimeError):
    """Neither this machine nor Debian offers the dictionary."""


def fetch(language: str, folder: Path) -> Path:
    """The dictionary's package in `folder`, downloaded by apt-get unless one is there."""
    if language not in LANGUAGES:
        raise Unavailable(f"FreeDict has no {language!r}; it has {', '.join(LANGUAGES)}")
    name = f"dict-freedict-eng-{LANGUAGES[language]}"
    if present := sorted(folder.glob(f"{name}_*.deb")):
        return present[-1]
    folder.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that the move is atomic and an interrupted download leaves nothing.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _run(["apt-get", "download", name], Path(scratch))
        (deb,) = Path(scratch).glob("*.deb")
        return deb.replace(folder / deb.name)


def read_pairs(deb: Path, language: str, known_words: Set[str]) -> pa.Table:
    """Columns source, target and language: head words of one or two words, all of them known.

    `known_words` are lower-cased. A head word keeps its first `MAX_TRANSLATIONS` translations.
    """
    articles: dict[str, list[str]] = defaultdict(list)
    for head, body in _articles(deb, LANGUAGES[language]):
        words = _WORD.findall(head.lower())
        if len(words) <= 2 and known_words >= set(words) and _HEAD.fullmatch(head):
            articles[head].append(body)
    pairs = [(head, target) for head in articles for target in _translations(articles[head])]
    return pa.table(
        {
            "source": pa.array([head for head, _ in pairs], pa.string()),
            "target": pa.array([target for _, target in pairs], pa.string()),
            "language": pa.array([language] * len(pairs), pa.string()),
        }
    )


def _articles(deb: Path, code: str) -> Iterator[tuple[str, str]]:
    """Head word, as it is written, and body of each article, in the order of the index."""
    files = _run(["dpkg-deb", "--fsys-tarfile", str(deb.resolve())])
    with tarfile.open(fileobj=io.BytesIO(files)) as archive:
        path = f"./usr/share/dictd/freedict-eng-{code}"
        index = _member(archive, f"{path}.index").decode()
        text = gzip.decompress(_member(archive, f"{path}.dict.dz"))
    # Spellings of one head word share its article: each is read once.
    for place in dict.fromkeys(
        tuple(line.split("\t")[1:3])
        for line in index.splitlines()
        if not line.startswith(("00database", "00-database"))
    ):
        offset, length = map(_number, place)
        article = text[offset : offset + length].decode().replace("‐", "-")
        head, _, body = unicodedata.normalize("NFC", article).partition("\n")
        head = _PRONUNCIATION_OR_GRAMMAR.sub("", head).strip()
        yield head.removeprefix("to "), body


def _translations(bodies: list[str]) -> list[str]:
    """The first few translations in the articles of one head word.

    Where every meaning has an article of its own, as in German, they stand in alphabetical order;
    the usual meaning is the one with the most examples and references. Elsewhere the order stands.
    """
    weight: Counter[str] = Counter()
    for body in bodies:
        said = len(_SAID_OF_IT.findall(body))
        for line in _senses(body):
            for target in _equivalents(line):
                weight[target] += said
    return [target for target, _ in weight.most_common(MAX_TRANSLATIONS)]


def _senses(body: str) -> Iterator[str]:
    """The lines that translate: the first, and those with a number. The others explain."""
    lines = [line for line in body.splitlines() if line.strip()]
    for position, line in enumerate(lines):
        if position == 0 or line[0].isdigit():
            yield _NUMBER.sub("", line.strip()).removesuffix(".")


def _equivalents(line: str) -> Iterator[str]:
    """The clean words and short phrases in a line of alternatives."""
    if _MARKED.search(line):
        return
    for alternative in _COMMA_OUTSIDE_BRACKETS.split(line):
        if _LATIN_NAME.search(alternative):
            continue
        # Behind a tag such as <masc> there is only what is said of the word.
        word = _REMARK.sub("", alternative).partition("<")[0].strip()
        if word and not _UNCLEAN.search(word) and len(word.split()) <= MAX_WORDS:
            yield word


def _number(digits: str) -> int:
    """A number as dictd writes it: base 64, the highest digit first."""
    return reduce(lambda value, digit: value * 64 + _VALUE[digit], digits, 0)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise Unavailable(f"the package holds no {name}; delete it to fetch it anew")
    return file.read()


def _run(command: list[str], folder: Path | None = None) -> bytes:
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not on PATH: FreeDict needs Debian or Ubuntu") from None
    if run.returncode:
        reason = run.stderr.decode(errors="replace").strip()
        raise Unavailable(f"{' '.join(command)} failed: {reason}")
    return run.stdout
