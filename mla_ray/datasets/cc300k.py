"""CC300K: 300,000 images of Conceptual Captions, machine-translated into five languages.

What the paper trains on, both stages: image and caption in a language for LE, English caption and
translation for NLT.

- Source: `dataset.zip` of the repository AIM3-RUC/MLA on GitHub; the translations are UC2's (Zhou
  et al. 2021). Images: crawled by oneself from the addresses of Conceptual Captions (Sharma et al.
  2018); by now many are gone.
- Licence: Conceptual Captions may be used freely if Google is named; images belong to their sites;
  none is stated for the translations.
- Sizes: the first 300,000 images of a shuffled list of those with a caption in every language, of
  those that the authors' own crawl had; one caption an image in en, de, fr, cs, zh and ja.

Layout, below the root, as dataset.zip unpacks: `ConceptualCaption/annotation/uc2_6langs/` with
`shuffled_names.npy` (names such as 00012345.jpg, a row number of Conceptual Captions) and
`jsons/ref_captions_de.json` … (`{"00012345.jpg": ["…"], …}`), `ConceptualCaption/existing_ids.json`
(a list of the names that the authors had), and the crawl in `ConceptualCaption/images/`.

Who has fewer images than the authors leaves the others out with `--skip-invalid`; the translation
tables need none. Without existing_ids.json the first 300,000 names of the list are taken, which are
other ones.

Could not be confirmed: what `ConceptualCaption/cc300k.json` holds, which the authors' page names
and their code does not read; 300,000 is the cut of a fork's settings.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import ijson

from mla_ray.datasets.layout import (
    DataSet,
    Size,
    SourceFile,
    array,
    find_file,
    inside,
    members,
    parsed,
)
from mla_ray.datasets.table_writer import Caption, Pair

FOLDER = "ConceptualCaption"
NAMES = f"{FOLDER}/annotation/uc2_6langs/shuffled_names.npy"
EXISTING = f"{FOLDER}/existing_ids.json"
IMAGES = f"{FOLDER}/images"
COUNT = 300_000
LANGUAGES = ("en", "de", "fr", "cs", "zh", "ja")


def captions(root: Path, languages: Sequence[str]) -> Iterator[Caption]:
    """Rows in these languages, all of split train."""
    chosen = _chosen(root)
    for language in languages:
        for name, text, place in _texts(root, language, chosen):
            image = inside(root / IMAGES, name, place)
            yield Caption(image.stem, image, language, text, "train", place)


def pairs(root: Path, language: str) -> Iterator[Pair]:
    """English captions and their translations, of which one is in memory."""
    chosen = _chosen(root)
    english = {name: text for name, text, _ in _texts(root, "en", chosen)}
    for name, text, place in _texts(root, language, chosen):
        yield Pair(english[name], text, language, place)


def _chosen(root: Path) -> set[str]:
    """The names that the set consists of; the names of all images are in memory, some 0.3 GB."""
    path = find_file(root, NAMES)
    shuffled = (name.decode() if isinstance(name, bytes) else str(name) for name in array(path))
    if (root / EXISTING).exists():
        existing = set(_listed(find_file(root, EXISTING)))
        shuffled = (name for name in shuffled if name in existing)
    chosen = list(islice(shuffled, COUNT))
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"{path}: a name is there twice; fetch the file anew")
    if not chosen:
        raise ValueError(f"{path}: none of its names is in {EXISTING}; fetch both anew")
    return set(chosen)


def _listed(path: Path) -> Iterator[str]:
    for number, name in enumerate(parsed(path, lambda file: ijson.items(file, "item")), start=1):
        if not isinstance(name, str):
            raise ValueError(
                f"{path} item {number}: {name!r:.60} is no name; is it the right file?"
            )
        yield name


def _texts(root: Path, language: str, chosen: set[str]) -> Iterator[tuple[str, str, str]]:
    """Name, first caption and place of each chosen image, which all must have one."""
    path = find_file(root, _file(language))
    missing = set(chosen)
    for name, texts in members(path):
        if name in missing:
            missing.discard(name)
            place = f"{path} {name!r}"
            if not texts:
                raise ValueError(f"{place}: no caption; fetch the file anew")
            yield name, texts[0], place
    if missing:
        raise ValueError(
            f"{path}: no caption for {len(missing):,} of {len(chosen):,} images, {min(missing)!r} "
            "among them; is it of the same dataset.zip as the list of names?"
        )


def _file(language: str) -> str:
    return f"{FOLDER}/annotation/uc2_6langs/jsons/ref_captions_{language}.json"


_MLA = "https://github.com/AIM3-RUC/MLA (dataset.zip, linked there)"
_CONCEPTUAL = "https://ai.google.com/research/ConceptualCaptions/download (addresses to crawl)"

CC300K = DataSet(
    name="cc300k",
    title="CC300K: 300,000 of Conceptual Captions, machine-translated into five languages",
    licence="captions: free to use, naming Google; translations: none stated; images: the web's",
    languages=LANGUAGES,
    files=(
        SourceFile(NAMES, _MLA),
        SourceFile(EXISTING, _MLA, records="item", optional=True),
        SourceFile(_file("en"), _MLA),
        *(SourceFile(_file(code), _MLA, languages=(code,)) for code in LANGUAGES if code != "en"),
        SourceFile(IMAGES, _CONCEPTUAL),
    ),
    captions=captions,
    pairs=pairs,
    pair_languages=tuple(code for code in LANGUAGES if code != "en"),
    sizes={(code, "train"): Size(COUNT, COUNT) for code in LANGUAGES},
)
