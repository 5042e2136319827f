"""English in other words: what a change of wording costs the native in its own language.

The native was trained on names of emoji by CLDR. Unicode names the characters themselves, some of
them otherwise: CLDR's shopping cart is a shopping trolley, its reverse button a black left-pointing
triangle. That is English which nothing was trained on.
"""

import unicodedata

import pyarrow as pa
import pyarrow.compute as pc


def unicode_name(image_id: str) -> str | None:
    """The character's name, of an emoji that is one character: `twemoji/1f60a`."""
    points = image_id.partition("/")[2].split("-")
    if len(points) != 1:
        return None
    try:
        return unicodedata.name(chr(int(points[0], 16))).lower()
    except ValueError:  # no number, or not in this Python's version of Unicode
        return None


def reworded(captions: pa.Table) -> tuple[pa.Table, set[str]]:
    """English captions with Unicode's names where these differ, and the images where they do."""
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
