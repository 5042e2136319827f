"""`card.json`: the metadata of a language pack, its origin, metrics and file hashes."""

import json
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field
from upath import UPath

from mla_ray.model.identity import NativeIdentity
from mla_ray.model.language import Language
from mla_ray.packs.files import PackError, check_file
from mla_ray.runtime.atomic import read_consistently
from mla_ray.runtime.storage import as_path, is_local, patiently

if TYPE_CHECKING:  # they import torch, which takes seconds
    from mla_ray.model.encoder import LanguageEncoder
    from mla_ray.model.native import Native

ROWS = {1: "F32", 2: "F16"}
"""Versions of the file format, and safetensors' name for the dtype of embedding rows in each."""
RENEW = "To update the fingerprint, load the pack and save it again: LanguagePack.load(…).save(…)."
"""Advice for a card whose fingerprint follows rule 1."""


class Card(BaseModel):
    """Content of `card.json`.

    Sizes: V embedding rows, W row width, D text width, H acquirer hidden size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = Field(default=1, description="Version of the file format (`ROWS`).")
    language: Language
    native: str
    fingerprint: str
    fingerprint_v1: str | None = Field(
        default=None, description="Fingerprint of the native by rule 1 of mla-ray 0.1.0."
    )
    rows: int = Field(gt=0, description="Number of embedding rows V.")
    row_width: int = Field(gt=0, description="Width W of an embedding row.")
    width: int = Field(gt=0, description="Text width D of the native.")
    hidden: int = Field(gt=0, description="Hidden size H of the acquirers.")
    blocks: int = Field(gt=0)
    context_length: int = Field(gt=0)
    stages: dict[str, dict[str, Any]] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    libraries: dict[str, str] = Field(default_factory=dict)
    sha256: dict[str, str] = Field(default_factory=dict)
    acquired_on: dict[str, str] | None = Field(
        default=None, description="Native and fingerprint at acquisition, if plugged since."
    )
    started_from: dict[str, Any] | None = Field(
        default=None, description="Hashes and stages of the pack that training continued from."
    )

    def check(self, native: "Native | NativeIdentity", where: str = "language pack") -> None:
        """Check that the pack was made for `native`.

        Args:
            native: Native to compare with.
            where: Name of the pack for the message.

        Raises:
            PackError: The pack was made for another native. The message names both natives.

        """
        if not native.goes_by(self.fingerprint, where, RENEW):
            raise PackError(
                f"{where}: made for native {self.native!r} ({self.fingerprint[:12]}), but this is "
                f"{native.name!r} ({native.fingerprint[:12]}); load {self.native!r}, or acquire "
                f"{self.language!r} on this one"
            )

    def renewed(self, native: "Native") -> "Card":
        """Return a copy with the native's current fingerprints.

        The pack must belong to the native already (`check`).
        """
        now = {"fingerprint": native.fingerprint, "fingerprint_v1": native.fingerprint_v1}
        return self.model_copy(update=now)


def make_card(native: "Native", language: str, encoder: "LanguageEncoder", **rest: Any) -> Card:
    """Create the card of an encoder.

    Args:
        native: Native that the encoder was made for.
        language: BCP-47 tag.
        encoder: Encoder that gives the sizes.
        **rest: Further fields of `Card`, such as `stages`, `data` and `metrics`.

    """
    count, row_width = encoder.embedding.rows.weight.shape
    return Card(
        language=language,
        native=native.name,
        fingerprint=native.fingerprint,
        fingerprint_v1=native.fingerprint_v1,
        rows=count,
        row_width=row_width,
        width=native.text.width,
        hidden=encoder.hidden,
        blocks=len(native.text.blocks),
        context_length=native.text.context_length,
        libraries={n: version(n) for n in ("mla-ray", "torch", "open_clip_torch", "tokenizers")}
        | {"python": platform.python_version()},
        **rest,
    )


def read_card(folder: str | Path | UPath) -> Card:
    """Read the card of the pack at a path or URL.

    Raises:
        PackError: There is no card, or it is invalid. The message names the file.
        OSError: The storage is not available.

    """
    path = as_path(folder) / "card.json"

    def read() -> Card:
        check_file(path)
        return parse_card(path.read_bytes(), str(path))

    if is_local(path):
        return read_consistently(Path(path.parent.path), read)
    return patiently(read, what=f"reading {path}")


def by_language(folders: Iterable[str | Path]) -> dict[str, str | Path]:
    """Return the folders of packs by the languages on their cards.

    Raises:
        ValueError: Two packs have the same language.
        PackError: A card is missing or invalid.

    """
    packs: dict[str, str | Path] = {}
    for folder in folders:
        language = read_card(folder).language
        if packs.setdefault(language, folder) != folder:
            raise ValueError(f"{folder}: a second pack for {language!r}; pass one per language")
    return packs


def parse_card(data: bytes, where: str) -> Card:
    """Parse the bytes of a `card.json`.

    Args:
        data: Content of the file.
        where: Name of the file for the message.

    Raises:
        PackError: The content is not a valid card, or has another schema version.

    """
    try:
        document = json.loads(data)
        schema = document.get("schema_version") if isinstance(document, dict) else None
        if schema not in [*ROWS]:
            known = " and ".join(map(str, ROWS))
            raise PackError(
                f"{where}: has schema version {schema}, but this mla-ray reads {known}; "
                "update mla-ray or make the pack again"
            )
        card = Card.model_validate(document)
        # Reject values that Python reads but a JSON response cannot hold: NaN, 1e999, a lone
        # surrogate, deep nesting.
        json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
        card.model_dump_json()
        return card
    except (ValueError, RecursionError) as error:  # JSON and pydantic errors are ValueErrors
        if isinstance(error, PackError):
            raise
        raise PackError(f"{where}: {error}") from error
