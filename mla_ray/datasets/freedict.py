"""FreeDict: bilingual dictionaries from Debian packages, downloaded without root permission.

Each package holds a dictd index and the compressed text of the articles. Only the translations of
an article are used. `read_articles` also reads other dictionaries in dictd's format.
"""

import gzip
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from types import MappingProxyType

from mla_ray.datasets import debian
from mla_ray.datasets.debian import Unavailable

# Three-letter codes in FreeDict's package names, by BCP-47 code.
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
_REMARK = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}")
# Vulgar, obsolete or rare. Such a mark applies to its whole line.
_MARKED = re.compile(
    r"\[(?:vulg|pej|slang|obs|archaic|dated|rare|alt|veraltet|veraltend|selten)\.?\]"
)
_LATIN_NAME = re.compile(r"\((?:zool|bot)\.\)")
# Phrases, abbreviations and markup contain these characters. Words of any script do not.
_UNCLEAN = re.compile(r"[\d.…:!?\"“”„«»‹›=~*/\\|{}<>()\[\]+_@#%&$€^°→]|\s\s|^[-–]|[-–]$")
_SAID_OF_IT = re.compile(r'\{|^ +"', re.MULTILINE)


def fetch(language: str, folder: Path) -> Path:
    """Return the path of a language's dictionary package, and download it if it is missing.

    Args:
        language: BCP-47 code.
        folder: Folder of the package.

    Raises:
        Unavailable: FreeDict has no such language, or apt-get failed or is not installed.

    """
    if language not in LANGUAGES:
        raise Unavailable(f"FreeDict has no {language!r}; it has {', '.join(LANGUAGES)}")
    return debian.fetch(f"dict-freedict-eng-{LANGUAGES[language]}", folder)


def read_heads(deb: Path, language: str) -> Iterator[tuple[str, Iterator[str]]]:
    """Yield English head words and phrases, each with up to `MAX_TRANSLATIONS` translations.

    The translations are found when they are asked for, because most callers want few head words.
    """
    articles: dict[str, list[str]] = defaultdict(list)
    for head, body in _articles(deb, f"eng-{LANGUAGES[language]}"):
        if _HEAD.fullmatch(head):
            articles[head].append(body)
    for head, bodies in articles.items():
        yield head, _translations(bodies)


def read_words(deb: Path, code: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the words of a dictionary into English, each with its English translations.

    Args:
        deb: The package.
        code: Name of the dictionary, such as `fin-eng`.

    """
    for heads, body in _articles(deb, code):
        glosses = [gloss for line in _senses(body) for gloss in _equivalents(line)]
        if glosses:
            yield heads, glosses


def _articles(deb: Path, code: str) -> Iterator[tuple[str, str]]:
    """Yield the head word and the body of each article, in the order of the index."""
    for text in read_articles(deb, f"usr/share/dictd/freedict-{code}"):
        article = unicodedata.normalize("NFC", text.replace("‐", "-"))
        head, _, body = article.partition("\n")
        head = _PRONUNCIATION_OR_GRAMMAR.sub("", head).strip()
        yield head.removeprefix("to "), body


def read_articles(deb: Path, path: str) -> Iterator[str]:
    """Yield the articles of a dictd dictionary in the order of the index.

    Args:
        deb: The package.
        path: Path in the package, without the suffixes `.index` and `.dict.dz`.

    Raises:
        Unavailable: The package lacks one of the two files, or cannot be read.

    """
    index, zipped = debian.read(deb, f"{path}.index", f"{path}.dict.dz")
    text = gzip.decompress(zipped)
    # Spellings of one head word share an article, which is read once.
    for place in dict.fromkeys(
        tuple(line.split("\t")[1:3])
        for line in index.decode().splitlines()
        if not line.startswith(("00database", "00-database"))
    ):
        offset, length = map(_number, place)
        yield text[offset : offset + length].decode()


def _translations(bodies: list[str]) -> Iterator[str]:
    """Yield the first translations in the articles of one head word, at most `MAX_TRANSLATIONS`.

    Some dictionaries, such as the German one, have one article per meaning in alphabetical order.
    The usual meaning is then the one with the most examples and references. Ties keep their order.
    """
    weight: Counter[str] = Counter()
    for body in bodies:
        examples = len(_SAID_OF_IT.findall(body))
        for line in _senses(body):
            for target in _equivalents(line):
                weight[target] += examples
    yield from (target for target, _ in weight.most_common(MAX_TRANSLATIONS))


def _senses(body: str) -> Iterator[str]:
    """Yield the lines with translations: the first line, and the lines that start with a number.

    Other lines are explanations.
    """
    lines = [line for line in body.splitlines() if line.strip()]
    for position, line in enumerate(lines):
        if position == 0 or line[0].isdigit():
            yield _NUMBER.sub("", line.strip()).removesuffix(".")


def _equivalents(line: str) -> Iterator[str]:
    """Yield the clean words and short phrases in a line of alternatives."""
    if _MARKED.search(line):
        return
    for alternative in _COMMA_OUTSIDE_BRACKETS.split(line):
        if _LATIN_NAME.search(alternative):
            continue
        # Text after a tag such as <masc> only describes the word.
        word = _REMARK.sub("", alternative).partition("<")[0].replace("~", " ").strip()
        if word and not _UNCLEAN.search(word) and len(word.split()) <= MAX_WORDS:
            yield word


def _number(digits: str) -> int:
    """Return the value of a dictd number: base 64, most significant digit first."""
    return reduce(lambda value, digit: value * 64 + _VALUE[digit], digits, 0)
