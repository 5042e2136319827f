"""Names of languages: one spelling, that of BCP-47, wherever a user or a file may name one."""

from functools import lru_cache
from typing import Annotated

from langcodes import standardize_tag, tag_is_valid
from pydantic import AfterValidator

ENGLISH = "en"
NOT_A_LANGUAGE = {"mis", "mul", "und", "zxx"}
"""ISO 639's codes for uncoded, several, undetermined and no language."""


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


Language = Annotated[str, AfterValidator(canonical)]
"""Of a pydantic model: a tag in any spelling, kept in the canonical one."""
