"""English captions with Unicode's names, to measure what a change of wording costs the native.

The native was trained on CLDR's names of emoji. Unicode has its own names of the characters, and
some of them differ: CLDR's "shopping cart" is "shopping trolley", and its "reverse button" is
"black left-pointing triangle". No training used these names.
"""

import unicodedata

import pyarrow as pa
import pyarrow.compute as pc


def unicode_name(image_id: str) -> str | None:
    """Return the Unicode name of an emoji in lower case.

    Args:
        image_id: Id of the image, such as `twemoji/1f60a`.

    Returns:
        None for an emoji of several characters, or if Python's version of Unicode lacks it.

    """
    points = image_id.partition("/")[2].split("-")
    if len(points) != 1:
        return None
    try:
        return unicodedata.name(chr(int(points[0], 16))).lower()
    except ValueError:  # not a code point, or missing in this Python's version of Unicode
        return None


def reworded(captions: pa.Table) -> tuple[pa.Table, set[str]]:
    """Replace English captions by Unicode's names where these differ.

    Returns:
        The English captions, and the ids of the images whose caption was replaced.

    """
    english = captions.filter(pc.equal(captions["language"], "en"))
    texts: list[str] = []
    changed: set[str] = set()
    for row in english.select(["image_id", "caption"]).to_pylist():
        name = unicode_name(row["image_id"])
        if name is None or name == row["caption"].lower():
            texts.append(row["caption"])
        else:
            texts.append(name)
            changed.add(row["image_id"])
    place = english.column_names.index("caption")
    return english.set_column(place, "caption", pa.array(texts, pa.string())), changed
