"""`card.json`: what a language pack is, what it was made from, and how well it does."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from upath import UPath

from mla_ray.model.encoder import LanguageEncoder
from mla_ray.model.language import Language
from mla_ray.model.native import Native
from mla_ray.packs.files import PackError, check_file
from mla_ray.runtime.atomic import read_consistently
from mla_ray.runtime.storage import as_path, is_local, patiently

SCHEMA_VERSION = 1
RENEW = (
    "Load the pack and save it again for the fingerprint of today: LanguagePack.load(…).save(…)."
)
"""What to do about a card with a fingerprint of the rule of before."""


class Card(BaseModel):
    """`card.json`. Sizes: V embedding rows, W row width, D text width, H acquirer hidden size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    language: Language
    native: str
    fingerprint: str
    fingerprint_v1: str | None = Field(
        default=None, description="of the native, by the rule of mla-ray 0.1.0"
    )
    rows: int = Field(gt=0, description="V")
    row_width: int = Field(gt=0, description="W")
    width: int = Field(gt=0, description="D")
    hidden: int = Field(gt=0, description="H")
    blocks: int = Field(gt=0)
    context_length: int = Field(gt=0)
    stages: dict[str, dict[str, Any]] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    libraries: dict[str, str] = Field(default_factory=dict)
    sha256: dict[str, str] = Field(default_factory=dict)
    acquired_on: dict[str, str] | None = Field(
        default=None, description="native and fingerprint, if it was plugged into another since"
    )
    started_from: dict[str, Any] | None = Field(
        default=None, description="hashes and stages of the pack that training went on from"
    )

    def check(self, native: Native, where: str = "language pack") -> None:
        """PackError, naming both natives, if the pack was made for another."""
        if not native.goes_by(self.fingerprint, where, RENEW):
            raise PackError(
                f"{where}: made for native {self.native!r} ({self.fingerprint[:12]}), but this is "
                f"{native.name!r} ({native.fingerprint[:12]}); load {self.native!r}, or acquire "
                f"{self.language!r} anew"
            )

    def renewed(self, native: Native) -> "Card":
        """The card of a pack that is the native's, with the native's fingerprints of today."""
        now = {"fingerprint": native.fingerprint, "fingerprint_v1": native.fingerprint_v1}
        return self.model_copy(update=now)


def make_card(native: Native, language: str, encoder: LanguageEncoder, **rest: Any) -> Card:
    """A card for `encoder`; `rest` are `stages`, `data` and `metrics`."""
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
    """The card of the pack in `folder`; PackError if there is none, or it is not one."""
    path = as_path(folder) / "card.json"

    def read() -> Card:
        check_file(path)
        return parse_card(path.read_bytes(), str(path))

    if is_local(path):
        return read_consistently(Path(path.parent.path), read)
    return patiently(read, what=f"reading {path}")


def parse_card(data: bytes, where: str) -> Card:
    """The card in a file's bytes; PackError, with `where` they are from, if it is none."""
    try:
        document = json.loads(data)
        schema = document.get("schema_version") if isinstance(document, dict) else None
        if schema != SCHEMA_VERSION:
            raise PackError(
                f"{where}: schema version {schema}, this mla-ray reads {SCHEMA_VERSION}; update one"
            )
        card = Card.model_validate(document)
        # What Python reads but no answer can hold: NaN and 1e999, half a character, a deep nest.
        json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
        card.model_dump_json()
        return card
    except (ValueError, RecursionError) as error:  # JSON and pydantic errors are ValueErrors
        if isinstance(error, PackError):
            raise
        raise PackError(f"{where}: {error}") from error
