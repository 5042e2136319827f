"""`mla pack`: language packs, one at a time."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mla_ray.cli.options import Json, NativeName, Repo, emit

pack_app = typer.Typer(no_args_is_help=True, help="Look at language packs, share and export them.")


@pack_app.command("show")
def pack_show(folder: Path, as_json: Json = False) -> None:
    """Print the card of a pack."""
    from mla_ray.packs.card import read_card

    card = read_card(folder)
    emit(card.model_dump(), as_json, card.model_dump_json(indent=2))


@pack_app.command("verify")
def pack_verify(folder: Path, native: NativeName = "emoji-clip", as_json: Json = False) -> None:
    """Check hashes, shapes and fingerprint of a pack against its native."""
    from mla_ray.model.native import Native
    from mla_ray.packs.pack import LanguagePack

    pack = LanguagePack.load(folder, Native.load(native))
    result = {"pack": str(folder), "language": pack.language, "ok": True}
    emit(result, as_json, f"{folder}: a sound pack for {pack.language!r} on {native}")


@pack_app.command("plug")
def pack_plug(
    folder: Annotated[str, typer.Argument(help="Pack of the native that was fine-tuned.")],
    native: Annotated[str, typer.Option("--native", help="Folder that mla finetune made.")],
    out: Annotated[str, typer.Option(help="Folder for the new pack.")],
    as_json: Json = False,
) -> None:
    """Make a pack of the same weights for a native that was fine-tuned from the pack's own."""
    from mla_ray.model.native import Native
    from mla_ray.packs.transfer import plug

    card = plug(folder, Native.load(native), out)
    result: dict[str, object] = {"pack": out, "language": card.language, "native": native}
    result |= {"acquired_on": card.acquired_on}
    emit(result, as_json, f"{card.language}: pack in {out}, for {native}")


@pack_app.command("import-official")
def pack_import_official(
    checkpoint: Annotated[Path, typer.Argument(help="pytorch_model.bin of the paper's code.")],
    languages: Annotated[str, typer.Option(help="As the checkpoint names them: de,fr.")],
    tokenizer: Annotated[
        str, typer.Option(help="M-BERT's: tokenizer.json, a folder or a hub name.")
    ] = "bert-base-multilingual-cased",
    native: Annotated[
        str | None, typer.Option("--native", help="What it was trained on: ViT-B-32/openai")
    ] = None,
    with_native: Annotated[
        Path | None, typer.Option(help="Folder to write the CLIP inside the checkpoint to.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the packs.")] = Path("packs"),
    as_json: Json = False,
) -> None:
    """Turn a checkpoint of the paper's released code into language packs."""
    from mla_ray.packs.pack import import_official

    if (native is None) == (with_native is None):
        raise typer.BadParameter("give either --native or --with-native")
    frozen, packs = import_official(
        checkpoint, languages.split(","), native, tokenizer, with_native
    )
    for language, pack in packs.items():
        pack.save(out / language)
    result = {
        "native": frozen.name,
        "fingerprint": frozen.fingerprint,
        "packs": {language: str(out / language) for language in packs},
    }
    lines = [f"{language}: pack in {out / language}" for language in packs]
    emit(result, as_json, "\n".join([f"native {frozen.name}", *lines]))


@pack_app.command("push")
def pack_push(
    pack: Annotated[str, typer.Argument(help="A pack: a folder or a URL.")],
    repo: Repo,
    native: NativeName = "emoji-clip",
    license_: Annotated[
        str | None, typer.Option("--license", help="Of the pack: apache-2.0, cc-by-4.0 …")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="On the hub, yours alone.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch on the hub.")] = None,
    as_json: Json = False,
) -> None:
    """Share a pack with its model card; the hub's token is read from HF_TOKEN."""
    from mla_ray.model.native import Native
    from mla_ray.packs.hub import push

    frozen = Native.load(native)
    shared = push(pack, repo, frozen, license=license_, private=private, revision=revision)
    emit(asdict(shared), as_json, f"{shared.language}: shared at {shared.url}")


@pack_app.command("pull")
def pack_pull(
    repo: Repo,
    out: Annotated[str, typer.Argument(help="Folder or URL for the pack.")],
    native: NativeName = "emoji-clip",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    as_json: Json = False,
) -> None:
    """Take a shared pack, after sizes, hashes and its native have been checked."""
    from mla_ray.model.native import Native
    from mla_ray.packs.hub import pull

    shared = pull(repo, out, Native.load(native), revision=revision)
    emit(asdict(shared), as_json, f"{shared.language}: pack in {shared.url}")


@pack_app.command("export")
def pack_export(
    pack: Annotated[str, typer.Argument(help="A pack: a folder or a URL.")],
    onnx: Annotated[str, typer.Option(help="Folder or URL for the ONNX graphs.")],
    native: NativeName = "emoji-clip",
    language: Annotated[
        str | None, typer.Option(help="en: the native's English text tower, too.")
    ] = None,
    image: Annotated[bool, typer.Option("--image", help="The image tower, too.")] = False,
    as_json: Json = False,
) -> None:
    """Write native and pack as ONNX graphs that agree with PyTorch to 1e-4."""
    from mla_ray.model.native import Native
    from mla_ray.packs.onnx import export_onnx
    from mla_ray.packs.pack import LanguagePack
    from mla_ray.runtime.console import bars

    if language not in (None, "en"):
        raise typer.BadParameter("the pack's own language is always there; --language adds en")
    frozen = Native.load(native)
    loaded = LanguagePack.load(pack, frozen)
    with bars() as report:
        exported = export_onnx(
            loaded, frozen, onnx, image=image, english=language == "en", report=report
        )
    worst = exported.differences
    lines = [f"{name}.onnx: within {worst[name]:.0e} of PyTorch" for name in worst]
    emit(asdict(exported), as_json, "\n".join([f"{loaded.language}: in {exported.out}", *lines]))
