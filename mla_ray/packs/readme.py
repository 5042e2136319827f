"""Model card of a language pack: README.md with the YAML front matter that the hub reads.

All content comes from `card.json`.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import langcodes
import open_clip
from huggingface_hub import EvalResult, ModelCardData

if TYPE_CHECKING:
    from mla_ray.packs.card import Card

TASK = "image-text-retrieval"
"""Task name in the front matter."""
# Recall metrics, unlike other entries such as steps and numbers of images.
_FIGURE = re.compile(r"(^|[ _])(AR|R@\d+)$")

_TEXT = """\
# {language} for {native}

This language pack adds {name} to the frozen English image-text model {native} by
[multilingual language acquisition](https://arxiv.org/abs/2206.11091) (Zhang, Hu and Jin, 2022).
It contains {rows:,} embedding rows of {row_width}, a linear layer to the native's text width of
{width}, and a language acquirer of hidden size {hidden} after each of its {blocks} text blocks. It
reads at most {context_length} tokens of a text. Image and English features stay unchanged.

## How to use

```bash
mla pack pull {repo} {folder} --native {native_argument}
```

```python
from mla_ray import LanguagePack, Native

native = Native.load({native_literal})
pack = LanguagePack.load({folder_literal}, native)
features = pack.encode_text(["…"])  # [B, E], not normalized; compare with native.encode_image
```

The pack fits only one native. Loading compares the fingerprint of the native's weights, settings,
preprocessing and tokenizer, and rejects any other native:

    {fingerprint}

## Training data

{data}

## Training

{stages}

Made with {libraries}.

## Metrics

{figures}

## Limits

- The pack knows only the words of its training data. A text of other words gets a poor feature.
  Tokens that occur in no training text have no embedding row and are skipped.
- The language inherits the native's limits and biases on images.
- Metrics on a test set similar to the training data say little about other data.

## License

{license}
"""


def model_card(card: "Card", license: str | None = None, repo: str | None = None) -> str:  # noqa: A002
    """Return the README.md of a pack: YAML front matter, then Markdown.

    Args:
        card: Card of the pack.
        license: License of the pack, as the hub spells it: `apache-2.0`, `cc-by-4.0`, `other`.
        repo: Repository of the pack, for the example command.

    """
    folder, tables = f"packs/{card.language}", _table("table", card.data)
    body = _TEXT.format(
        **card.model_dump(
            include={"rows", "row_width", "width", "hidden", "blocks", "context_length"}
        ),
        name=_plain(_language_name(card.language)),
        language=_plain(card.language),
        native=_plain(card.native),
        native_argument=_argument(card.native),
        native_literal=json.dumps(card.native),
        folder=_argument(folder),
        folder_literal=json.dumps(folder),
        fingerprint=_plain(card.fingerprint),
        repo=_argument(repo or "REPO"),
        data=f"{tables}\n\nThe SHA-256 of its file identifies a table."
        if tables
        else "Not recorded.",
        stages=_table("stage", card.stages) or "The pack is not trained.",
        libraries=", ".join(f"{_plain(n)} {_plain(v)}" for n, v in card.libraries.items())
        or "unrecorded versions",
        figures=_table("figure", {n: {"value": v} for n, v in _leaves(card.metrics)})
        or "No metrics were measured when the pack was made.",
        license=_plain(license) if license else "The author of this pack gave no license.",
    )
    return f"---\n{_front_matter(card, license).to_yaml()}\n---\n\n{body}"


def _front_matter(card: "Card", license: str | None) -> ModelCardData:  # noqa: A002
    base = _hub_name(card.native)
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type="mla-ray",
            dataset_name=f"held out of training, {card.language}",
            metric_type=figure.rpartition(" ")[2],
            metric_name=figure,
            metric_value=value,
        )
        for figure, value in _leaves(card.metrics)
        if _FIGURE.search(figure) and isinstance(value, int | float)
    ]
    return ModelCardData(
        language=card.language.partition("-")[0],  # the hub knows ISO 639 codes, not all of BCP-47
        license=license.lower() if license else None,
        base_model=base,
        base_model_relation="adapter" if base else None,
        pipeline_tag="feature-extraction",
        library_name="mla-ray",
        tags=["language-pack", "clip", TASK, "multilingual-language-acquisition", card.language],
        model_name=f"{card.language} for {card.native}" if results else None,
        eval_results=results or None,
    )


def _language_name(tag: str) -> str:
    try:
        return langcodes.Language.get(tag).display_name()
    except ValueError:  # not BCP-47
        return tag


def _hub_name(native: str) -> str | None:
    """Return the native's repository on the hub, or None.

    A folder's path only looks like a repository, and the bundled native has none.
    """
    if native.startswith("hf-hub:"):
        return native.removeprefix("hf-hub:")
    source, _, pretrained = native.rpartition("/")
    repo: str = open_clip.get_pretrained_cfg(source, pretrained).get("hf_hub", "")
    return repo.rstrip("/") or None


def _table(first: str, rows: Mapping[str, Any]) -> str:
    """Return a Markdown table with a row for each name and a column for each key of its value."""
    entries = {n: v if isinstance(v, Mapping) else {"value": v} for n, v in rows.items()}
    columns = list(dict.fromkeys(key for entry in entries.values() for key in entry))
    if not columns:
        return ""
    lines = [[first, *columns], ["---"] * (1 + len(columns))]
    lines += [[n, *(entry.get(c, "") for c in columns)] for n, entry in entries.items()]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_cell(part) for part in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{_cell(key)} {_cell(part)}" for key, part in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return _plain(str(value))


def _leaves(metrics: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested metrics, named by their path.

    `{"t2i": {"R@1": 52.1}}` yields the name `t2i R@1`.
    """
    for key, value in metrics.items():
        name = f"{path} {key}".strip()
        if isinstance(value, Mapping):
            yield from _leaves(value, name)
        else:
            yield name, value


def _plain(text: str) -> str:
    """Escape a text to one line without Markdown tables, code, HTML or links.

    The card may come from an untrusted author.
    """
    line = " ".join(text.split())
    return re.sub(r"([|`<>\[\]\\])", r"\\\1", line)


def _argument(text: str) -> str:
    """Quote a word of a shell command, because the reader may copy it."""
    return shlex.quote(" ".join(text.split()))
