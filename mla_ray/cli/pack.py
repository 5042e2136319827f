"""Commands `mla pack`, each for one language pack."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mla_ray.cli.options import Json, NativeName, Repo, emit

PackFolder = Annotated[Path, typer.Argument(help="Folder of a pack.")]
pack_app = typer.Typer(no_args_is_help=True, help="Inspect, share and export language packs.")


@pack_app.command("show")
def pack_show(folder: PackFolder, as_json: Json = False) -> None:
    """Print the card of a language pack."""
    from mla_ray.packs.card import read_card

    card = read_card(folder)
    emit(card.model_dump(), as_json, card.model_dump_json(indent=2))


@pack_app.command("verify")
def pack_verify(
    folder: PackFolder, native: NativeName = "emoji-clip", as_json: Json = False
) -> None:
    """Check the hashes and shapes of a pack, and that it belongs to the native."""
    from mla_ray.model.native import Native
    from mla_ray.packs.pack import LanguagePack

    pack = LanguagePack.load(folder, Native.load(native))
    result = {"pack": str(folder), "language": pack.language, "ok": True}
    emit(result, as_json, f"{folder}: a valid pack for {pack.language!r} on {native}")


@pack_app.command("plug")
def pack_plug(
    folder: Annotated[str, typer.Argument(help="Pack of the original native, a folder or a URL.")],
    native: Annotated[
        str, typer.Option("--native", help="Fine-tuned native: the folder that mla finetune wrote.")
    ],
    out: Annotated[str, typer.Option(help="Folder for the new pack.")],
    as_json: Json = False,
) -> None:
    """Copy a pack for a native that was fine-tuned from the pack's native.

    The weights of the pack do not change.
    """
    from mla_ray.model.native import Native
    from mla_ray.packs.transfer import plug

    card = plug(folder, Native.load(native), out)
    result: dict[str, object] = {"pack": out, "language": card.language, "native": native}
    result |= {"acquired_on": card.acquired_on}
    emit(result, as_json, f"{card.language}: pack in {out}, for {native}")


@pack_app.command("import-official")
def pack_import_official(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint pytorch_model.bin of the paper's code.")
    ],
    languages: Annotated[
        str,
        typer.Option(help="Comma-separated languages as the checkpoint names them, such as de,fr."),
    ],
    tokenizer: Annotated[
        str,
        typer.Option(
            help="M-BERT tokenizer: a tokenizer.json, a folder or a name on the Hugging Face hub."
        ),
    ] = "bert-base-multilingual-cased",
    native: Annotated[
        str | None,
        typer.Option(
            "--native",
            help="Native that the checkpoint was trained on, such as ViT-B-32/openai. Its weights "
            "must equal those in the checkpoint.",
        ),
    ] = None,
    with_native: Annotated[
        Path | None,
        typer.Option(help="Folder for the CLIP model of the checkpoint, which becomes the native."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the packs.")] = Path("packs"),
    as_json: Json = False,
) -> None:
    """Convert a checkpoint of the paper's released code to language packs.

    Give either --native or --with-native.
    """
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
    pack: Annotated[str, typer.Argument(help="Pack to share, a folder or a URL.")],
    repo: Repo,
    native: NativeName = "emoji-clip",
    license_: Annotated[
        str | None,
        typer.Option("--license", help="License of the pack, such as apache-2.0 or cc-by-4.0."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Create a private repository on the hub.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch on the hub. The default is the main branch.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Upload a pack and its model card to the Hugging Face hub or to a folder.

    The command reads the hub's token from HF_TOKEN.
    """
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
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit on the hub. The default is the main branch."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Download a shared pack.

    The command first checks the sizes, the hashes and the native of the pack.
    """
    from mla_ray.model.native import Native
    from mla_ray.packs.hub import pull

    shared = pull(repo, out, Native.load(native), revision=revision)
    emit(asdict(shared), as_json, f"{shared.language}: pack in {shared.url}")


@pack_app.command("export")
def pack_export(
    pack: Annotated[str, typer.Argument(help="Pack to export, a folder or a URL.")],
    onnx: Annotated[str, typer.Option(help="Folder or URL for the ONNX graphs.")],
    native: NativeName = "emoji-clip",
    language: Annotated[
        str | None,
        typer.Option(help="Set en to export the native's English text tower as well."),
    ] = None,
    image: Annotated[
        bool, typer.Option("--image", help="Export the native's image tower as well.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Export a pack, and optionally towers of its native, as ONNX graphs.

    The features of the graphs agree with PyTorch to 1e-4.
    """
    from mla_ray.model.native import Native
    from mla_ray.packs.onnx import export_onnx
    from mla_ray.packs.pack import LanguagePack
    from mla_ray.runtime.console import bars

    if language not in (None, "en"):
        raise typer.BadParameter("the pack's language is always exported; --language accepts en")
    frozen = Native.load(native)
    loaded = LanguagePack.load(pack, frozen)
    with bars() as report:
        exported = export_onnx(
            loaded, frozen, onnx, image=image, english=language == "en", report=report
        )
    worst = exported.differences
    lines = [f"{name}.onnx: within {worst[name]:.0e} of PyTorch" for name in worst]
    emit(asdict(exported), as_json, "\n".join([f"{loaded.language}: in {exported.out}", *lines]))
