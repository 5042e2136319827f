"""Record how nodes follow the work on Ray's fake cloud, and draw it.

    python -m benchmarks.nodes [encoders] [workers] [trials] [--json nodes.json] [--out nodes.png]

Scenes and cluster are those of tests/cluster: raylets on this machine, which Ray's autoscaler adds
and removes as it does machines. It looks every second, and a node goes after 6 idle seconds. A fake
node takes no time to boot. Each has room for one text encoder, training worker or trial. The native
is tiny, so what takes time is the start of processes.

- *encoders*: `serve/config.yaml` with 1, 2, 3 and again 1 text encoder, under constant searches.
- *workers*: a training with `--workers 1:4`. One node is killed on the way. Its losses are compared
  with those of one worker.
- *trials*: a sweep with `--concurrent 3`.

With `--draw nodes.json` earlier figures are drawn again.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.memory import save_tiny, translation, write_pairs
from mla_ray.reproduce.plot import INK, SOFT
from mla_ray.training.config import AcquireConfig, Stage
from tests.cluster import scenes

Figures = dict[str, Any]
"""Measurements, in the format of the JSON file."""

NODES = "#d55e00"
SCENES = ("encoders", "workers", "trials")
SETTINGS = AcquireConfig(
    nlt=Stage(steps=1_000_000, batch=32, lr=1e-4),
    le=Stage(steps=0, batch=32, lr=1e-4),
    vocab_size=1000,
    warmup=0,
    checkpoint_every=50,
)


def recorded(scene: str, job: Figures, folder: Path) -> Figures:
    """Run a scene. Its rows of metrics become the losses of one worker at the recorded steps."""
    if scene == "encoders":
        (folder / "packs").mkdir()
        args = {"native": job["native"], "index": f"edge:{folder / 'index'}"}
        args |= {name: str(folder / name) for name in ("packs", "pictures")}
        return scenes.encoders(args, {"CPU": 1}, {"num_cpus": 1}, [(1, 1), (2, 2), (3, 3), (1, 1)])
    if scene == "trials":
        return scenes.trials(job, folder)
    found = scenes.workers(job, folder)
    rows, alone = found.pop("rows"), found.pop("alone")
    found |= {"before": len(found["before"]), "steps": rows[-1]["step"]}
    found["one worker"] = [alone[step // 10 - 1] for _, step, _ in found["losses"]]
    found["largest relative difference of losses"] = max(
        abs(row["loss"] / loss - 1) for row, loss in zip(rows, alone, strict=True)
    )
    return found


# --- the picture ---------------------------------------------------------------------------------


TITLES = {
    "encoders": "Serving: 2, 3, then 1 text encoder asked for",
    "workers": "Training with --workers 1:4; a node is killed",
    "trials": "A sweep with --concurrent 3",
    "losses": "Its loss, and that of one worker",
}


def draw(found: Figures) -> Figure:
    """Draw a panel for each scene that was recorded, and one for the losses of the workers."""
    panels = [name for name in TITLES if name in found or (name == "losses" and "workers" in found)]
    rows = (len(panels) + 1) // 2
    picture = Figure(figsize=(10, 3.5 * rows), layout="constrained")
    FigureCanvasAgg(picture)
    for place, name in enumerate(panels, 1):
        axis = picture.add_subplot(rows, 2, place)
        axis.set_title(TITLES[name], fontsize=11)
        if name == "losses":
            _losses(axis, found["workers"])
        else:
            _steps(axis, found[name], name)
        axis.set_xlabel("step" if name == "losses" else "seconds")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="both", color="#e5e7ea", linewidth=0.7)
        axis.set_axisbelow(True)
    return picture


def _steps(axis: Axes, scene: Figures, name: str) -> None:
    seconds, alive, running = zip(*scene["samples"], strict=True)
    axis.fill_between(seconds, alive, step="post", color=NODES, alpha=0.2, label="nodes", lw=0)
    axis.step(seconds, running, where="post", color=INK, label=name)
    axis.set_yticks(range(max(*alive, *running) + 1))
    axis.set_ylim(0, max(*alive, *running) + 0.9)
    for at, event in scene["events"]:
        if "asked" in event or "killed" in event:
            axis.axvline(at, color=SOFT, linewidth=1, linestyle=":")
            axis.annotate(event, (at, axis.get_ylim()[1]), (3, -3), textcoords="offset points",
                          fontsize=8, color=SOFT, va="top")  # fmt: skip
    axis.legend(frameon=False, loc="lower right", fontsize=9)


def _losses(axis: Axes, scene: Figures) -> None:
    _, steps, losses = zip(*scene["losses"], strict=True)
    axis.plot(steps, losses, "o", color=INK, label="1 to 4 workers")
    axis.plot(steps, scene["one worker"], "x", color=NODES, label="one worker")
    axis.legend(frameon=False, fontsize=9)


def main() -> None:
    """Record the scenes, or read them, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenes", nargs="*", choices=[*SCENES, []], default=[])
    parser.add_argument("--json", type=Path, default=Path("nodes.json"))
    parser.add_argument("--draw", type=Path, help="a JSON file of before")
    parser.add_argument("--out", type=Path, default=Path("nodes.png"))
    given = parser.parse_args()
    found: Figures = json.loads(given.draw.read_text()) if given.draw else {}
    if not given.draw:
        with tempfile.TemporaryDirectory(prefix="mla-nodes-") as folder:
            words = [translation(number) for number in range(1000)]
            save_tiny(Path(folder) / "tiny-clip", words)
            write_pairs(Path(folder) / "pairs.parquet", words, 2000)
            job = {
                "native": f"{folder}/tiny-clip",
                "language": "de",
                "pairs": f"{folder}/pairs.parquet",
                "captions": None,
                "config": SETTINGS.model_dump(),
                "store": f"{folder}/features",
                "resume": False,
            }
            for name in given.scenes or SCENES:
                scratch = Path(folder) / name
                scratch.mkdir()
                found[name] = recorded(name, job, scratch)
                given.json.write_text(json.dumps(found) + "\n")
                print(name, json.dumps({k: v for k, v in found[name].items() if k != "samples"}))
    draw(found).savefig(given.out, dpi=110)


if __name__ == "__main__":
    main()
