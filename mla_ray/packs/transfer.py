"""Transfer of a language pack to a native that was fine-tuned from the pack's native.

This is the paper's setting in which the native is fine-tuned on English and the language modules
are plugged in unchanged (paper, section 4). A pack belongs to one native, and every other native
rejects it by fingerprint. Fine-tuning changes the fingerprint but hardly changes the space, so the
pack still works to a degree that must be measured.
"""

import tempfile
from pathlib import Path

from upath import UPath

from mla_ray.model.lineage import LINEAGE, Ancestor, lineage_of
from mla_ray.model.native import Native
from mla_ray.model.recognition import recognised
from mla_ray.packs.card import RENEW, Card, read_card
from mla_ray.packs.files import PackError, fetch_files
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.storage import as_path


def plug(pack: str | Path | UPath, native: Native, out: str | Path | UPath) -> Card:
    """Write a copy of a pack for a native that descends from the pack's native.

    The weights are unchanged. The new card records the native of the acquisition and has no
    metrics.

    Args:
        pack: Path or URL of the pack.
        native: Native that was fine-tuned from the pack's native, in one or more steps, as its
            `lineage.json` records.
        out: Path or URL of the new pack. An older pack there is replaced.

    Returns:
        The new card.

    Raises:
        PackError: The native does not descend from the pack's native or has other dimensions, or
            the pack is damaged.
        FileExistsError: `out` contains something other than a pack.
        ValueError: The native's `lineage.json` is invalid.

    """
    card = read_card(pack)
    if native.goes_by(card.fingerprint, pack, RENEW):
        raise PackError(f"{pack}: is for {native.name!r} already; there is nothing to plug")
    lineage = lineage_of(native)
    if lineage is None:
        raise PackError(
            f"{native.name}: no {LINEAGE} of its weights; only a native that `mla finetune` wrote "
            f"accepts packs of its ancestors; acquire {card.language!r} on this native"
        )
    if not any(_is_of(card, ancestor, pack) for ancestor in lineage.ancestors):
        known = ", ".join(f"{a.native!r} ({a.fingerprint[:12]})" for a in lineage.ancestors)
        raise PackError(
            f"{pack}: made for native {card.native!r} ({card.fingerprint[:12]}), but "
            f"{native.name!r} was fine-tuned from {known}; acquire {card.language!r} on it"
        )
    origin = card.acquired_on or {"native": card.native, "fingerprint": card.fingerprint}
    changed = {"native": native.name, "acquired_on": origin, "metrics": {}}
    moved = card.renewed(native).model_copy(update=changed)
    with tempfile.TemporaryDirectory(prefix="mla-plug-") as folder:
        scratch = Path(folder)
        fetch_files(as_path(pack), scratch)
        (scratch / "card.json").write_text(moved.model_dump_json(indent=2) + "\n")
        plugged = LanguagePack.load(scratch, native)  # hashes, shapes, dimensions
        plugged.save(out)
    return plugged.card


def _is_of(card: Card, ancestor: Ancestor, pack: str | Path | UPath) -> bool:
    """Return whether a pack was made for an ancestor. Either may have only a rule 1 fingerprint."""
    if recognised(
        card.fingerprint, ancestor.fingerprint, ancestor.fingerprint_v1 or "", pack, RENEW
    ):
        return True
    return card.fingerprint_v1 is not None and card.fingerprint_v1 == ancestor.fingerprint
