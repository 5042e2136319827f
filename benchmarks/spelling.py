"""Measure how packs handle alternative spellings: AR of plain and of respelled names.

    python benchmarks/spelling.py PACK... --captions captions.parquet [--json]

The names are the captions of the split `test` of a caption table, such as `mla data emoji` writes.
Names that a respelling does not change count, too. All packs must be of the same language.
"""

import argparse
import json
import re
from collections.abc import Callable
from functools import partial

import pyarrow as pa

from mla_ray.data.table_reader import read_captions
from mla_ray.evaluation.evaluation import Gallery, encode_query, evaluate
from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack

FATHA, TATWEEL, PATAH = "\u064e", "\u0640", "\u05b7"
MARKS = re.compile("[\u064b-\u0652]")
TONES, THAI_VOWELS = "\u0e48\u0e49\u0e4a\u0e4b", "\u0e31\u0e34\u0e35\u0e36\u0e37\u0e38\u0e39"
Respell = Callable[[str], str]


def main() -> None:
    """Parse the options, measure each spelling with each pack, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packs", nargs="+", metavar="PACK")
    parser.add_argument("--captions", required=True)
    parser.add_argument("--native", default="emoji-clip")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    native = Native.load(arguments.native)
    packs = [LanguagePack.load(folder, native) for folder in arguments.packs]
    (language,) = {pack.language for pack in packs}
    test = read_captions(arguments.captions, language=language, split="test").table
    gallery = Gallery.of(native, test)
    plain = test["caption"].to_pylist()
    results = []
    ways: dict[str, Respell] = {"plain": str} | respellings(language)
    for name, respell in ways.items():
        texts = [respell(text) for text in plain]
        changed = sum(text != other for text, other in zip(texts, plain, strict=True))
        place = test.column_names.index("caption")
        table = test.set_column(place, "caption", pa.array(texts))
        figures = []
        for pack in packs:
            encode = partial(encode_query, native, {language: pack}, language)
            figures.append(round(evaluate(encode, language, table, gallery).ranks.recall().ar, 1))
        results.append({"spelling": name, "changed": changed, "AR": figures})
        if not arguments.json:
            print(f"{name:28} {changed:4} of {len(plain)} changed   AR {figures}")
    if arguments.json:
        print(json.dumps({"language": language, "packs": arguments.packs, "spellings": results}))


def respellings(language: str) -> dict[str, Respell]:
    """Return functions that respell names in common alternative ways, by description."""
    ways: dict[str, dict[str, Respell]] = {
        "ar": {
            "vowel marks": _after_letters(FATHA),
            "no vowel marks": lambda text: MARKS.sub("", text),
            "tatweel": _stretched,
        },
        "de": {"ss for ß": lambda text: text.replace("ß", "ss")},
        "fa": {"Arabic y and k": lambda text: text.replace("ی", "ي").replace("ک", "ك")},
        "fr": {"oe for œ": lambda text: text.replace("œ", "oe"), "capitals": str.upper},
        "he": {"vowel marks": _after_letters(PATAH)},
        "ru": {"е for ё": lambda text: text.replace("ё", "е")},
        "th": {"two เ for แ": lambda text: text.replace("แ", "เเ"), "tone first": _tone_first},
        "tr": {"capitals": lambda text: text.replace("i", "İ").replace("ı", "I").upper()},
        "zh": {"traditional": _traditional},
    }
    return ways.get(language, {"capitals": str.upper})


def _after_letters(mark: str) -> Respell:
    return lambda text: "".join(c + mark if c.isalpha() else c for c in text)


def _stretched(text: str) -> str:
    return " ".join(
        word[:1] + TATWEEL * 2 + word[1:] if word[1:] else word for word in text.split()
    )


def _tone_first(text: str) -> str:
    letters = list(text)
    for place in range(len(letters) - 1):
        if letters[place] in THAI_VOWELS and letters[place + 1] in TONES:
            letters[place], letters[place + 1] = letters[place + 1], letters[place]
    return "".join(letters)


def _traditional(text: str) -> str:
    import opencc

    converted: str = opencc.OpenCC("s2t").convert(text)
    return converted


if __name__ == "__main__":
    main()
