"""Languages of a server: English, and every language with a pack in its store."""

import asyncio
from collections.abc import Mapping

import langcodes

from mla_ray.packs.store import Listing, PackStore
from mla_ray.serving.problems import ProblemError
from mla_ray.serving.schemas import LanguageInfo, ProblemKind


class ServedLanguages:
    """Result of the last scan of a pack store. English is always included."""

    def __init__(self, store: PackStore) -> None:
        self._store = store
        self.listing = Listing()

    async def scan(self) -> None:
        """Scan the store again."""
        self.listing = await asyncio.to_thread(self._store.scan)

    def resolve(self, tag: str) -> str:
        """Return the served language that matches a BCP-47 tag best.

        Raises:
            ProblemError: Status 404: no language matches.

        """
        language = self.listing.resolve(tag)
        if language is None:
            detail = f"no pack for language {tag!r}; there are {', '.join(self.listing.languages)}"
            raise ProblemError(404, ProblemKind.UNKNOWN_LANGUAGE, detail)
        return language

    def infos(self, captions: Mapping[str, int]) -> list[LanguageInfo]:
        """Describe each language. `captions` counts the captions in the index by language."""
        infos = []
        for language in self.listing.languages:
            pack = self.listing.packs.get(language)
            infos.append(
                LanguageInfo(
                    language=language,
                    name=langcodes.get(language).display_name(),
                    autonym=langcodes.get(language).autonym(),
                    native=pack is None,
                    captions=captions.get(language, 0),
                    version=pack.version if pack else None,
                    rows=pack.card.rows if pack else None,
                    metrics=pack.card.metrics if pack else {},
                )
            )
        return infos
