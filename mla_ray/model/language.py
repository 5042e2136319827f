"""Language tags: one canonical BCP-47 spelling for all users and files."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated

import langcodes
from langcodes import standardize_tag, tag_distance, tag_is_valid
from pydantic import AfterValidator

ENGLISH = "en"
"""Tag of the native's own language."""
NOT_A_LANGUAGE = {"mis", "mul", "und", "zxx"}
"""ISO 639 codes for uncoded, multiple, undetermined and no language."""
NEAR = 5
"""Maximum CLDR matching distance at which one language may stand for another.

Mandarin and Chinese have distance 0, two regions 4 or 5, and two closely related languages 8 or
more.
"""


class UnknownLanguage(ValueError):
    """Error for a string that is not the BCP-47 tag of a language."""


@lru_cache(maxsize=4096)
def canonical(tag: str) -> str:
    """Return the canonical BCP-47 form of a tag.

    `pt-br` becomes `pt-BR`, `iw` becomes `he`, and `DE_at` becomes `de-AT`. The result contains
    only letters, digits and hyphens, so it is safe as a folder name.

    Raises:
        UnknownLanguage: The string is not a valid tag, or does not name a language.

    """
    try:
        known = tag_is_valid(tag.replace("_", "-"))
        standard = standardize_tag(tag.replace("_", "-"))
    except ValueError:
        known, standard = False, ""
    if not known or standard in NOT_A_LANGUAGE:
        raise UnknownLanguage(
            f"language {tag!r:.60} is unknown; write a BCP-47 tag such as 'de' or 'pt-BR'"
        )
    return standard


def nearest(tag: str, languages: Iterable[str]) -> str | None:
    """Return the language among `languages` that best matches a tag, or None.

    The match is the tag itself, or a language whose speakers read the tag's language as their own.
    `de-AT` matches `de`, `cmn` and `zh-CN` match `zh`, and `zh-TW` matches `zh-Hant`. Different
    scripts never match: `zh-Hant` does not match `zh`, and Serbian in Latin script does not match
    `sr`. Two different regions, such as `pt-BR` and `pt-PT`, never match either. Tables, indexes
    and answers all use this rule.

    Among equally near languages, a prefix of the tag wins, then the first by name.

    Args:
        tag: Canonical BCP-47 tag.
        languages: Canonical tags.

    """
    near = [(_distance(tag, language), language) for language in languages]
    best = min(
        (
            (distance, not f"{tag}-".startswith(f"{language}-"), language)
            for distance, language in near
            if distance <= NEAR
        ),
        default=None,
    )
    return best[-1] if best else None


@lru_cache(maxsize=65536)
def _distance(tag: str, language: str) -> int:
    if tag == language:
        return -1  # an exact match wins over another tag at CLDR distance 0
    one, other = langcodes.get(tag), langcodes.get(language)
    regions = {one.territory, other.territory} - {None}
    if len(regions) > 1 or one.maximize().script != other.maximize().script:
        return NEAR + 1
    return tag_distance(tag, language)


Language = Annotated[str, AfterValidator(canonical)]
"""Pydantic field type of a language tag. Accepts any spelling and stores the canonical one."""
