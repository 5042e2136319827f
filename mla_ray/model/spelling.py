"""Spelling rules that map equivalent spellings of a language to one.

Examples are `Straße` and `Strasse`, Thai แ and two เ, Arabic with and without vowel marks, and
traditional and simplified Chinese. Users type one spelling and mean the other. `tokenizers.learn`
stores the rules in the vocabulary's `tokenizer.json`, so a pack keeps the rules that it was trained
with.
"""

import io
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import product

import langcodes
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, normalizers

Rule = tuple[str, str]
"""Regular expression and its replacement."""

_EVERY_LANGUAGE: tuple[Rule, ...] = (
    ("[\u02bb\u02bc\u2018\u2019\u2032]", "'"),
    ("[\u2010-\u2015\u2212]", "-"),
)
_TATWEEL_AND_VOWEL_MARKS: Rule = ("[\u0640\u064b-\u065f\u0670\u06d6-\u06ed]", "")
_ARABIC: tuple[Rule, ...] = (_TATWEEL_AND_VOWEL_MARKS, ("\u06cc", "\u064a"), ("\u06a9", "\u0643"))
_PERSIAN: tuple[Rule, ...] = (
    _TATWEEL_AND_VOWEL_MARKS,
    ("[\u064a\u0649]", "\u06cc"),
    ("\u0643", "\u06a9"),
)
_TURKIC: tuple[Rule, ...] = (("İ", "i"), ("I", "ı"))
_LIGATURES: tuple[Rule, ...] = (("œ", "oe"), ("Œ", "OE"), ("æ", "ae"), ("Æ", "AE"))
_SHARP_S: tuple[Rule, ...] = (("[ßẞ]", "ss"),)

_OF_LANGUAGE: dict[str, tuple[Rule, ...]] = {
    "ar": _ARABIC,
    "az": _TURKIC,
    "bn": (("\u09a4\u09cd\u200d", "\u09ce"),),
    "ckb": _PERSIAN,
    "de": _SHARP_S,
    "fa": _PERSIAN,
    "fr": _LIGATURES,
    "he": (
        ("[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]", ""),  # vowel marks
        ("\u05f3", "'"),
        ("\u05f4", '"'),
    ),
    "la": _LIGATURES,
    "lb": _SHARP_S,
    "ml": (  # final consonants, as encoded before Unicode 5.1
        ("\u0d23\u0d4d\u200d", "\u0d7a"),
        ("\u0d28\u0d4d\u200d", "\u0d7b"),
        ("\u0d30\u0d4d\u200d", "\u0d7c"),
        ("\u0d32\u0d4d\u200d", "\u0d7d"),
        ("\u0d33\u0d4d\u200d", "\u0d7e"),
        ("\u0d15\u0d4d\u200d", "\u0d7f"),
    ),
    "ro": (("ş", "ș"), ("Ş", "Ș"), ("ţ", "ț"), ("Ţ", "Ț")),
    "ru": (("ё", "е"), ("Ё", "Е")),
    "tr": _TURKIC,
    "ur": _PERSIAN,
}
"""Rules by language subtag. Those of Thai, Lao and Chinese are computed below."""

_THAI, _LAO = 0x0E00, 0x0E80
"""Starts of two Unicode blocks that have the same layout."""
_CHINESE = {"cdo", "cjy", "cmn", "gan", "hak", "hsn", "lzh", "nan", "wuu", "yue", "zh"}
_IDEOGRAPHS = ((0x3400, 0xA000), (0xF900, 0xFB00), (0x20000, 0x323B0))


def spelling(language: str) -> list[normalizers.Normalizer]:
    """Return the normalizers of a language's spelling rules.

    They apply after NFKC and before lowercasing.

    Args:
        language: BCP-47 tag. The rules depend on the language subtag only.

    """
    subtag = langcodes.get(language).language or language
    rules = [*_EVERY_LANGUAGE, *_OF_LANGUAGE.get(subtag, ())]
    if subtag in ("th", "lo"):
        rules += _thai_rules(_THAI if subtag == "th" else _LAO)
    steps: list[normalizers.Normalizer] = [
        normalizers.Replace(Regex(found), put) for found, put in rules
    ]
    if subtag in _CHINESE:
        steps.append(normalizers.Precompiled(_simplified()))
    return steps


def _thai_rules(block: int) -> Iterator[Rule]:
    """Yield rules that order marks as keyboards and dictionaries do, without duplicates."""

    def letters(*codes: int) -> list[str]:
        return [chr(block + code) for code in codes]

    (e,), (ae,), (nikhahit,) = letters(0x40), letters(0x41), letters(0x4D)
    tones = letters(0x48, 0x49, 0x4A, 0x4B)
    vowels = letters(0x31, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x47)
    yield e + e, ae
    # A mark that is typed twice is rendered once.
    marks = "".join([*vowels, *tones, *letters(0x4C), nikhahit])
    yield f"([{marks}])(?=\\1)", ""
    for tone, vowel in product(tones, vowels):
        yield tone + vowel, vowel + tone
    # NFKC decomposes the vowel am, but leaves the tone mark where it was typed.
    for tone in tones:
        yield nikhahit + tone, tone + nikhahit


@cache
def _simplified() -> bytes:
    """Return a table from traditional to simplified characters, in sentencepiece's format.

    OpenCC provides the mapping. Among the normalizers of `tokenizers`, only sentencepiece's table
    supports thousands of rules. sentencepiece builds the table as part of training, so this
    function trains on a dummy text.
    """
    import opencc

    convert = opencc.OpenCC("t2s").convert
    rules = [
        f"{code:X}\t{' '.join(f'{ord(each):X}' for each in simple)}\n"
        for first, end in _IDEOGRAPHS
        for code in range(first, end)
        if (simple := convert(chr(code))) != chr(code)
    ]
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as table:
        table.writelines(rules)
        table.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a"]), model_writer=model, model_type="char", vocab_size=8,
            hard_vocab_limit=False, normalization_rule_tsv=table.name, minloglevel=2,
        )  # fmt: skip
    parsed = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    charsmap: bytes = parsed.normalizer_spec.precompiled_charsmap
    return charsmap
