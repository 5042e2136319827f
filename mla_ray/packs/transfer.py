"""A language pack on a native that was fine-tuned from its own (paper, section 4).

A pack belongs to one native, and every other refuses it by fingerprint. Fine-tuning changes the
fingerprint but hardly the space, so a pack of the parent still means something there; how much is
to be measured.
"""

import tempfile
from pathlib import Path

from upath import UPath

from mla_ray.model.lineage import LINEAGE, read_lineage
from mla_ray.model.native import Native
from mla_ray.packs.card import MAX_FILE_BYTES, Card, PackError, read_card
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.storage import at, read_bytes


def plug(pack: str | Path | UPath, native: Native, out: str | Path | UPath) -> Card:
    """Write a pack of the same weights for a native that descends from the pack's own.

    The new card says what it was acquired on; what was measured there is left out.

    Args:
        pack: a path or URL.
        native: trained from the pack's native, in one or more steps, as its `lineage.json` says.
        out: a path or URL; an older pack there is replaced.

    Raises:
        PackError: the native does not descend from the pack's, is of other dimensions, or the pack
            is damaged.

    """
    card = read_card(pack)
    if card.fingerprint == native.fingerprint:
        raise PackError(f"{pack}: is for {native.name!r} already; there is nothing to plug")
    lineage = read_lineage(native.name)
    if lineage is None or lineage.fingerprint != native.fingerprint:
        raise PackError(
            f"{native.name}: no {LINEAGE} of its weights; only a native that `mla finetune` made "
            f"takes packs of the one it was made from; acquire {card.language!r} anew"
        )
    if card.fingerprint not in {ancestor.fingerprint for ancestor in lineage.ancestors}:
        known = ", ".join(f"{a.native!r} ({a.fingerprint[:12]})" for a in lineage.ancestors)
        raise PackError(
            f"{pack}: made for native {card.native!r} ({card.fingerprint[:12]}), but "
            f"{native.name!r} comes from {known}; acquire {card.language!r} anew"
        )
    origin = card.acquired_on or {"native": card.native, "fingerprint": card.fingerprint}
    changed = {"native": native.name, "fingerprint": native.fingerprint, "acquired_on": origin}
    moved = card.model_copy(update=changed | {"metrics": {}})
    with tempfile.TemporaryDirectory(prefix="mla-plug-") as made:
        scratch = Path(made)
        for name, most in MAX_FILE_BYTES.items():
            source = at(pack) / name
            if not source.is_file() or source.stat().st_size > most:
                raise PackError(f"{source}: missing, or larger than {most} bytes")
            (scratch / name).write_bytes(read_bytes(source))
        (scratch / "card.json").write_text(moved.model_dump_json(indent=2) + "\n")
        plugged = LanguagePack.load(scratch, native)  # hashes, shapes, dimensions
        plugged.save(out)
    return plugged.card
