"""CC300K: 300,000 images of Conceptual Captions, machine-translated into five languages.

The paper trains both stages on this dataset. LE uses images with captions in the new language. NLT
uses English captions with their translations.

- Source: `dataset.zip` of the GitHub repository AIM3-RUC/MLA. The translations are those of UC2
  (Zhou et al. 2021). Users crawl the images from the URLs of Conceptual Captions (Sharma et al.
  2018). Many of these images are no longer online.
- License: Conceptual Captions may be used freely if Google is named. The images belong to their
  sites. No license is stated for the translations.
- Sizes: 300,000 images with one caption each in en, de, fr, cs, zh and ja. They are the first
  300,000 of a shuffled list that exist in the authors' own crawl. The list has the images with a
  caption in every language.

Layout below the root, as dataset.zip unpacks:

- `ConceptualCaption/annotation/uc2_6langs/shuffled_names.npy`: image names such as 00012345.jpg.
  The number is a row of Conceptual Captions.
- `ConceptualCaption/annotation/uc2_6langs/jsons/ref_captions_de.json` …:
  `{"00012345.jpg": ["…"], …}`.
- `ConceptualCaption/existing_ids.json`: the list of the names in the authors' crawl.
- `ConceptualCaption/images/`: the crawled images.

Pass `--skip-invalid` to skip images that your crawl lacks. The translation tables need no images.
Without existing_ids.json, the first 300,000 names of the list are used. These are not the authors'
300,000 images.

Not confirmed: the content of `ConceptualCaption/cc300k.json`. The authors' page mentions this file,
but their code does not read it. The count of 300,000 comes from the settings of a fork.
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
    """Yield caption rows in these languages. All rows have the split `train`."""
    chosen = _chosen(root)
    for language in languages:
        for name, text, place in _texts(root, language, chosen):
            image = inside(root / IMAGES, name, place)
            yield Caption(image.stem, image, language, text, "train", place)


def pairs(root: Path, language: str) -> Iterator[Pair]:
    """Yield pairs of an English caption and its translation into `language`.

    The English captions are held in memory. The translations are streamed.
    """
    chosen = _chosen(root)
    english = {name: text for name, text, _ in _texts(root, "en", chosen)}
    for name, text, place in _texts(root, language, chosen):
        yield Pair(english[name], text, language, place)


def _chosen(root: Path) -> set[str]:
    """Return the image names of the dataset.

    The names of all existing images are held in memory, about 0.3 GB.

    Raises:
        ValueError: A name appears twice, or no name is left.

    """
    path = find_file(root, NAMES)
    shuffled = (name.decode() if isinstance(name, bytes) else str(name) for name in array(path))
    if (root / EXISTING).exists():
        existing = set(_listed(find_file(root, EXISTING)))
        shuffled = (name for name in shuffled if name in existing)
    chosen = list(islice(shuffled, COUNT))
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"{path}: a name appears twice; fetch the file anew")
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
    """Yield name, first caption and place of each chosen image.

    Raises:
        ValueError: A chosen image has no caption.

    """
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
            "among them; check that it is from the same dataset.zip as the list of names"
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
