"""Names of languages: one spelling, that of BCP-47, wherever a user or a file may name one."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated

import langcodes
from langcodes import standardize_tag, tag_distance, tag_is_valid
from pydantic import AfterValidator

ENGLISH = "en"
NOT_A_LANGUAGE = {"mis", "mul", "und", "zxx"}
"""ISO 639's codes for uncoded, several, undetermined and no language."""
NEAR = 5
"""How far a language may be from one that it is taken for, as CLDR's matching counts: Mandarin and
Chinese are 0 apart, two regions 4 or 5, two languages that are near each other 8 and more.
"""


class UnknownLanguage(ValueError):
    """A text that is no BCP-47 tag of a language."""


@lru_cache(maxsize=4096)
def canonical(tag: str) -> str:
    """The tag as BCP-47 writes it: `pt-BR` of `pt-br`, `he` of `iw`, `de-AT` of `DE_at`.

    Raises:
        UnknownLanguage: it is no tag, or names no language. Nothing but letters, digits and hyphens
            comes through, so that a tag may name a folder.

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
    """That of some languages which a tag means: itself, or one whose speakers read it as theirs.

    `de-AT` is `de`, `cmn` and `zh-CN` are `zh`, `zh-TW` is `zh-Hant`; but `zh-Hant` is not `zh`,
    and Serbian in Latin letters is not `sr`: another script is another language here, and so is
    another region where both are named (`pt-BR`, `pt-PT`). This is the one rule by which a language
    stands for another, in tables, indexes and answers. Of several as near, one of the tag's own
    subtags, then the first by name. None if there is none.

    Args:
        tag: BCP-47, canonical.
        languages: canonical tags.

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
        return -1  # before another that is the same by CLDR
    one, other = langcodes.get(tag), langcodes.get(language)
    regions = {one.territory, other.territory} - {None}
    if len(regions) > 1 or one.maximize().script != other.maximize().script:
        return NEAR + 1
    return tag_distance(tag, language)


Language = Annotated[str, AfterValidator(canonical)]
"""Of a pydantic model: a tag in any spelling, kept in the canonical one."""
