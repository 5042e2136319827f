"""What `mla index` does without a table: it removes entries and frees their space."""

import typer

from mla_ray.cli.options import emit
from mla_ray.index.entry import Conditions


def upkeep(
    index: str,
    native: str,
    pictures: str | None,
    conditions: Conditions | None,
    *,
    dry_run: bool,
    optimize: bool,
    as_json: bool,
) -> None:
    """Remove entries, then free the space of removed entries, and print what was removed.

    Args:
        index: URL of the index.
        native: Native whose vectors it holds.
        pictures: Folder or URL of the small copies, or None.
        conditions: What to remove. None removes nothing.
        dry_run: Only count what would be removed.
        optimize: Free the space.
        as_json: Print JSON.

    """
    from mla_ray.index import removal
    from mla_ray.index.encoders import Encoders
    from mla_ray.index.picture_store import PictureStore

    if conditions is not None and not any(conditions.values()):
        raise typer.BadParameter("--delete needs --source, --language or --image-id")
    if dry_run and optimize:
        raise typer.BadParameter("--dry-run does not go with --optimize")
    space = Encoders(native, {}).space  # the native is loaded only if its files are new here
    result: dict[str, object] = {}
    lines = []
    if conditions is not None:
        store = PictureStore(pictures) if pictures else None
        removed = removal.remove(index, space, conditions, store, dry_run=dry_run)
        result["would_remove" if dry_run else "removed"] = removed
        numbers = ", ".join(f"{n:,} {name}" for name, n in removed.items())
        lines.append(f"would remove: {numbers}" if dry_run else f"removed: {numbers}")
    if optimize:
        removal.reclaim(index, space)
        result["optimized"] = True
        lines.append("optimized")
    emit(result, as_json, "\n".join(lines))
