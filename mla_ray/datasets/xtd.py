"""XTD-10 and XTD-11: 1,000 MSCOCO images with one caption each, for testing alone.

- Source: the repository adobe-research/Cross-lingual-Test-Dataset-XTD10 on GitHub (Aggarwal and
  Kale 2020). Spanish, Italian, Korean, Polish, Russian, Turkish and Chinese were translated for it
  by people; German, French and English are of MIC (Rajendran et al. 2015), Japanese of STAIR
  captions: ten languages besides English.
- Licence: Adobe Research License, noncommercial research alone; STAIR CC-BY-4.0; MIC's is not
  stated there. Images: MSCOCO's, their authors' on Flickr.
- Sizes: 1,000 images and 1,000 captions in each of 11 languages, split test.

Layout, below the root, as the repository's checkout: `XTD10/test_image_names.txt`, line by line the
images of `XTD10/test_1kcaptions_es.txt` …, of `MIC/test_1kcaptions_de.txt`, `_en`, `_fr`, and of
`STAIR/test_1kcaptions_jp.txt`; beside them MSCOCO's `train2014/` and `val2014/`, or links to them.
800 of the images are of train2014: a model that was trained on MSCOCO is not tested fairly.

Could not be confirmed: the licence of MIC; by which languages XTD-10 and XTD-11 count.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mla_ray.datasets.coco import IMAGE_PARTS, image_file
from mla_ray.datasets.layout import DataSet, Size, SourceFile, aligned, find_file, names
from mla_ray.datasets.table_writer import Caption

IMAGES = "XTD10/test_image_names.txt"
COUNT = 1_000
TEXTS = {
    **{code: f"XTD10/test_1kcaptions_{code}.txt" for code in ("es", "it", "ko", "pl", "ru")},
    **{code: f"XTD10/test_1kcaptions_{code}.txt" for code in ("tr", "zh")},
    **{code: f"MIC/test_1kcaptions_{code}.txt" for code in ("en", "de", "fr")},
    "ja": "STAIR/test_1kcaptions_jp.txt",
}


def captions(root: Path, languages: Sequence[str]) -> Iterator[Caption]:
    """Rows in these languages."""
    listing = find_file(root, IMAGES)
    images = names(listing)
    for language in languages:
        texts = find_file(root, TEXTS[language])
        for line, text in aligned(texts, images, listing):
            name = images[line - 1].removesuffix(".jpg")
            image = image_file(root, name, f"{listing} line {line}")
            yield Caption(name, image, language, text, "test", f"{texts} line {line}")


_REPOSITORY = "https://github.com/adobe-research/Cross-lingual-Test-Dataset-XTD10"

XTD = DataSet(
    name="xtd",
    title="XTD-11: 1,000 MSCOCO images, one caption each in eleven languages",
    licence="captions: Adobe Research License (noncommercial), STAIR CC-BY-4.0; images: Flickr",
    languages=tuple(sorted(TEXTS)),
    files=(
        SourceFile(IMAGES, _REPOSITORY, COUNT),
        *(SourceFile(path, _REPOSITORY, COUNT, languages=(code,)) for code, path in TEXTS.items()),
        *IMAGE_PARTS,
    ),
    captions=captions,
    sizes={(language, "test"): Size(COUNT, COUNT) for language in TEXTS},
)
