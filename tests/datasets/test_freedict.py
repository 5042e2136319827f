import gzip
import shutil
import subprocess
from pathlib import Path

import pytest

from mla_ray.datasets.debian import Unavailable
from mla_ray.datasets.freedict import LANGUAGES, MAX_TRANSLATIONS, fetch, read_heads

needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is missing")
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def base64(number: int) -> str:
    return (base64(number // 64) if number >= 64 else "") + DIGITS[number % 64]


def build(folder: Path, code: str, articles: list[str]) -> Path:
    """A package as Debian's: an index, and the articles compressed."""
    root = folder / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        f"Package: dict-freedict-eng-{code}\nVersion: 1\nArchitecture: all\n"
        "Maintainer: nobody <nobody@example.org>\nDescription: test\n"
    )
    data = b""
    index = []
    for article in ["00-database-info\nEnglish-German, 1. edition\n", *articles]:
        key = article.partition("\n")[0].partition(" /")[0].replace("-", "").lower()
        length = len(article.encode())
        index.append(f"{key}\t{base64(len(data))}\t{base64(length)}\n")
        data += article.encode()
    index += index[1:2]  # another spelling with the same article
    dictd = root / "usr" / "share" / "dictd"
    dictd.mkdir(parents=True)
    (dictd / f"freedict-eng-{code}.index").write_text("".join(index))
    (dictd / f"freedict-eng-{code}.dict.dz").write_bytes(gzip.compress(data))
    deb = folder / f"dict-freedict-eng-{code}_1_all.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", root, deb], check=True, capture_output=True
    )
    return deb


def targets(folder: Path, article: str, code: str = "deu", language: str = "de") -> list[str]:
    """The translations of one article."""
    ((_, found),) = read_heads(build(folder, code, [article]), language)
    return list(found)


@needs_dpkg
def test_a_head_word_comes_with_its_translations(tmp_path: Path) -> None:
    deb = build(tmp_path, "deu", ["jellyfish /dʒˈɛlɪfɪʃ/\nQualle <fem>, Meduse <fem> [zool.]\n"])
    ((head, found),) = read_heads(deb, "de")
    assert (head, list(found)) == ("jellyfish", ["Qualle", "Meduse"])


@needs_dpkg
def test_only_words_and_phrases_are_head_words(tmp_path: Path) -> None:
    heads = [
        "Red",
        "red sea",
        "red sea fish",
        "red planet",
        "red-sea",
        "red (sea)",
        "to fish",
        "-fish",
    ]
    deb = build(tmp_path, "deu", [f"{head} /x/\nZiel\n" for head in heads])
    taken = ["Red", "red sea", "red sea fish", "red planet", "red-sea", "fish"]
    assert [head for head, _ in read_heads(deb, "de")] == taken


@needs_dpkg
@pytest.mark.parametrize(
    ("article", "found"),
    [
        ("dog /d/ <n>\n\nmbwa\n", ["mbwa"]),  # an empty line before the translation
        ("dog <n>\n [mat] pes (velký), hafan\n", ["pes", "hafan"]),  # remarks
        ("dog /d/\n1. chien; clébard\n2. suivre\n", ["chien", "clébard", "suivre"]),  # senses
        ("dog //d// //g// <n>\n1. 犬、狗\nanimal\n2. ぶす 2.\nnot nice\n", ["犬", "狗", "ぶす"]),
        ("dog /d/\nHund <masc, fem>, H. <masc>, jdn. jagen\n", ["Hund"]),  # abbreviations
        ("dog /d/\n1. köpek. dog days sıcak günler, it\n2. kurt.\n", ["it", "kurt"]),  # phrases
        ("dog /d/\n1. köpek, (zool.) Canis\n", ["köpek"]),  # a Latin name
        ("dog /d/\nein viel zu großer Hund, Hund…, 2 Hunde, Hunde-\n", []),
        ("dog /d/\nKöter <masc> [pej.]\n", []),
        ("dog /d/\nwau‐wau\n", ["wau-wau"]),
    ],
)
def test_translations_come_out_clean(tmp_path: Path, article: str, found: list[str]) -> None:
    assert targets(tmp_path, article) == found


@needs_dpkg
def test_examples_notes_and_references_are_no_translations(tmp_path: Path) -> None:
    article = (
        'dog /dˈɒɡ/\nHund <masc> [zool.]\n      "train a dog"  - einen Hund abrichten\n'
        "         Note: Tier\n   Synonym: {dawg}\n\n see: {dogs}, {pet dog}\n\n"
    )
    assert targets(tmp_path, article) == ["Hund"]


@needs_dpkg
def test_a_head_word_keeps_its_first_distinct_translations(tmp_path: Path) -> None:
    assert targets(tmp_path, "dog /d/\na, b, a, c, d, e\n") == ["a", "b", "c", "d"]
    assert MAX_TRANSLATIONS == 4


@needs_dpkg
def test_the_meaning_with_most_examples_and_references_comes_first(tmp_path: Path) -> None:
    articles = [
        "dog /d/\nBandhaken <masc>\n",
        'dog /d/\nHund <masc>\n      "train a dog"  - abrichten\n see: {dogs}, {pet dog}\n\n',
        "dog /d/\nKlampe <fem>\n see: {dogs}\n\n",
    ]
    ((_, found),) = read_heads(build(tmp_path, "deu", articles), "de")
    assert list(found) == ["Hund", "Klampe", "Bandhaken"]


@needs_dpkg
def test_scripts_with_combining_signs_are_words_too(tmp_path: Path) -> None:
    assert targets(tmp_path, "dog /d/\nकुत्ता, श्वान\n", "hin", "hi") == ["कुत्ता", "श्वान"]


@needs_dpkg
def test_a_package_without_the_dictionary_is_unavailable(tmp_path: Path) -> None:
    deb = build(tmp_path, "deu", ["dog\nHund\n"])
    with pytest.raises(Unavailable, match=r"holds no .*freedict-eng-fra.index; delete it"):
        list(read_heads(deb, "fr"))


@needs_dpkg
def test_a_broken_package_is_unavailable(tmp_path: Path) -> None:
    deb = tmp_path / "dict-freedict-eng-deu_1_all.deb"
    deb.write_bytes(b"half a download")
    with pytest.raises(Unavailable, match=r"dpkg-deb .* failed"):
        list(read_heads(deb, "de"))


def test_a_package_in_the_folder_is_used_again(tmp_path: Path) -> None:
    deb = tmp_path / "dict-freedict-eng-deu_2022.04.21-1_all.deb"
    deb.touch()
    assert fetch("de", tmp_path) == deb


def test_a_language_without_dictionary_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="FreeDict has no 'zh'; it has af, ar,"):
        fetch("zh", tmp_path)


def test_a_machine_without_apt_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="apt-get is not on PATH"):
        fetch("de", tmp_path / "freedict")
    assert list((tmp_path / "freedict").iterdir()) == []


def test_thirty_languages_have_a_dictionary() -> None:
    assert len(set(LANGUAGES.values())) == 30
