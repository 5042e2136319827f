"""Definitions of the ablations: tables of variants, each of which changes one base setting."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mla_ray.training.config import AcquireConfig, Stage

LANGUAGES = ("cs", "ja", "zh", "ko", "ar", "hi", "sw", "fi", "tr", "ru", "th", "he")
SEEDS = (0, 1, 2)
IN_TURN = 4
"""Number of languages that are added one after another."""

BASE = AcquireConfig(
    nlt=Stage(steps=60, batch=128, lr=1e-3),
    le=Stage(steps=6, batch=128, lr=3e-5),
    checkpoint_every=1_000_000,
)
"""Base settings: 0.3 of the default steps and half the default batch, to make 700 runs feasible."""
TOTAL = BASE.nlt.steps + BASE.le.steps
NONE = {"steps": 0}
BERT = "bert"
"""Placeholder in settings for the folder of the BERT from `reproduce.bert`."""

How = Literal["packs", "packs in turn", "tower", "tower in turn"]


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        name: Name, unique over all tables.
        settings: Settings that differ from `BASE`. The settings of a stage are merged into it.
        share: Share of the rows of every training table.
        together: Whether all languages are trained in one run, with the same number of steps per
            language.
        how: Language packs or tuning of the whole text tower. With "in turn", the languages are
            added one after another.
        seeds: Maximum number of seeds.

    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0
    together: bool = False
    how: How = "packs"
    seeds: int = len(SEEDS)

    @property
    def in_turn(self) -> bool:
        """Whether the languages are added one after another."""
        return self.how.endswith("in turn")

    def config(self, seed: int, languages: int = 1, bert: str = BERT) -> AcquireConfig:
        """Return the settings of a run.

        Args:
            seed: Seed of the run.
            languages: Number of languages. The steps are multiplied by it.
            bert: Folder of the BERT that replaces the placeholder `BERT`.

        """
        values = BASE.model_dump() | {"seed": seed}
        for name, value in self.settings.items():
            values[name] = values[name] | value if isinstance(value, Mapping) else value
        if values["vocabulary"] == BERT:
            values["vocabulary"] = bert
        for stage in ("nlt", "le"):
            values[stage]["steps"] *= languages
        return AcquireConfig.model_validate(values)

    def as_dict(self) -> dict[str, Any]:
        """Return all attributes as a dict."""
        return asdict(self)


@dataclass(frozen=True)
class Table:
    """Variants of one comparison. The first variant is the baseline."""

    name: str
    title: str
    variants: Sequence[Variant]


@dataclass(frozen=True)
class Run:
    """One run of a variant with its languages and a seed. "In turn" variants train repeatedly."""

    variant: Variant
    languages: tuple[str, ...]
    seed: int

    @property
    def key(self) -> str:
        """Key of the run's record."""
        return f"{self.variant.name}/{'+'.join(self.languages)}/{self.seed}"


FULL = Variant("NLT, then LE")
# The steps and batches of AcquireConfig take several times the work, so they run with one seed.
DEFAULTS = Variant(
    "the default settings",
    {
        "nlt": AcquireConfig().nlt.model_dump(),
        "le": AcquireConfig().le.model_dump(),
    },
    seeds=1,
)
NLT_ALONE = Variant("NLT alone", {"nlt": {"steps": TOTAL}, "le": NONE})
# LE alone starts from scratch. It needs NLT's learning rate, not the small one of a second stage.
LE_ALONE = Variant("LE alone", {"nlt": NONE, "le": {"steps": TOTAL, "lr": BASE.nlt.lr}})
NO_ACQUIRERS = Variant("no acquirers", {"acquirers": False})
AT_RANDOM = Variant("learned vocabulary, rows at random", {"rows": "random"})
M_BERT_LIKE = Variant("vocabulary and embeddings of a multilingual BERT", {"vocabulary": BERT})
HIDDEN = [Variant(f"H = {size}", {"hidden": size}) for size in (16, 32, 64, 128, 256)]
TOGETHER = Variant("all languages in one run", together=True)
SHARES = [Variant(f"{100 * part:g} % of the data", share=part) for part in (0.01, 0.03, 0.1, 0.3)]
# Pretrained weights of a native need a smaller learning rate than new weights.
TOWER = Variant(
    "the whole text tower tuned",
    {"acquirers": False, "nlt": {"lr": 3e-4}, "le": {"lr": 1e-5}},
    how="tower",
)
PACKS_IN_TURN = Variant("packs, one after another", how="packs in turn")
TOWER_IN_TURN = Variant(
    "the whole text tower, one after another", TOWER.settings, how="tower in turn"
)

TABLES: Mapping[str, Table] = {
    table.name: table
    for table in (
        Table("defaults", "The default settings, against English", (DEFAULTS,)),
        Table("stages", "The two stages", (FULL, NLT_ALONE, LE_ALONE)),
        Table("tower", "Packs against tuning the whole text tower", (FULL, TOWER)),
        Table("modules", "Acquirers and embeddings", (FULL, NO_ACQUIRERS, AT_RANDOM, M_BERT_LIKE)),
        Table("turn", "Languages added one after another", (PACKS_IN_TURN, TOWER_IN_TURN)),
        Table("data", "Amount of data", (FULL, *SHARES)),
        Table("hidden", "Hidden size of the acquirers", (FULL, *HIDDEN)),
        Table("together", "Languages trained separately or together", (FULL, TOGETHER)),
    )
}


def runs(tables: Sequence[Table], languages: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Return every run of the tables once, in table order."""
    by_key: dict[str, Run] = {}
    for table in tables:
        # Language by language, so that an unfinished table has all variants for some languages.
        for language in languages:
            for seed in seeds:
                for variant in table.variants:
                    if seed not in seeds[: variant.seeds]:
                        continue
                    run = Run(variant, group_of(variant, language, languages), seed)
                    by_key.setdefault(run.key, run)
    return list(by_key.values())


def group_of(variant: Variant, language: str, languages: Sequence[str]) -> tuple[str, ...]:
    """Return the languages of the run in which a variant measures `language`."""
    if variant.together:
        return tuple(languages)
    return tuple(languages[:IN_TURN]) if variant.in_turn else (language,)
