"""XTD-10 and XTD-11: 1,000 MSCOCO images with one caption each, for tests only.

- Source: the GitHub repository adobe-research/Cross-lingual-Test-Dataset-XTD10 (Aggarwal and Kale
  2020). It has ten languages besides English. Its authors had captions translated by people into
  Spanish, Italian, Korean, Polish, Russian, Turkish and Chinese. German, French and English are
  from MIC (Rajendran et al. 2015), Japanese is from STAIR captions.
- License: Adobe Research License, for noncommercial research only. STAIR is CC-BY-4.0. The license
  of MIC is not stated there. The images are MSCOCO's and belong to their authors on Flickr.
- Sizes: 1,000 images and 1,000 captions in each of 11 languages, all of the split `test`.

Layout below the root, which is a checkout of the repository:

- `XTD10/test_image_names.txt`: the images. Line n of each caption file belongs to image n.
- `XTD10/test_1kcaptions_es.txt` …, `MIC/test_1kcaptions_de.txt`, `_en`, `_fr`, and
  `STAIR/test_1kcaptions_jp.txt`: the captions.
- `train2014/` and `val2014/`: the images of MSCOCO, or links to these folders.

800 of the images are in train2014, so a test of a model that was trained on MSCOCO is not fair.

Not confirmed: the license of MIC, and which languages XTD-10 and XTD-11 count.
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
    """Yield caption rows in these languages."""
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
