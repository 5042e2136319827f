"""What is compared: tables of variants, each a change to one base."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mla_ray.training.config import AcquireConfig, Stage

LANGUAGES = ("cs", "ja", "zh", "ko", "ar", "hi", "sw", "fi", "tr", "ru", "th", "he")
SEEDS = (0, 1, 2)
IN_TURN = 4
"""Languages that are added one after another."""

BASE = AcquireConfig(
    nlt=Stage(steps=60, batch=128, lr=1e-3),
    le=Stage(steps=6, batch=128, lr=3e-5),
    checkpoint_every=1_000_000,
)
"""0.3 of the default's steps, of half its batch: what 700 runs can be done of."""
TOTAL = BASE.nlt.steps + BASE.le.steps
NONE = {"steps": 0}
BERT = "bert"
"""Stands for the folder of `reproduce.bert` in settings."""

How = Literal["packs", "packs in turn", "tower", "tower in turn"]


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        name: unique over all tables.
        settings: what differs from `BASE`; a stage's are merged into it.
        share: of the rows of every training table.
        together: all languages in one run, at as many steps for each.
        how: language packs, or the whole text tower tuned; in turn: languages one after another.
        seeds: at most.

    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0
    together: bool = False
    how: How = "packs"
    seeds: int = len(SEEDS)

    @property
    def in_turn(self) -> bool:
        return self.how.endswith("in turn")

    def config(self, seed: int, languages: int = 1, bert: str = BERT) -> AcquireConfig:
        """Settings of a run of so many languages."""
        values = BASE.model_dump() | {"seed": seed}
        for name, value in self.settings.items():
            values[name] = values[name] | value if isinstance(value, Mapping) else value
        if values["vocabulary"] == BERT:
            values["vocabulary"] = bert
        for stage in ("nlt", "le"):
            values[stage]["steps"] *= languages
        return AcquireConfig.model_validate(values)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Table:
    """Variants to be compared; the first is what the others are compared with."""

    name: str
    title: str
    variants: Sequence[Variant]


@dataclass(frozen=True)
class Run:
    """A variant, its languages and a seed: one training, or one after another."""

    variant: Variant
    languages: tuple[str, ...]
    seed: int

    @property
    def key(self) -> str:
        return f"{self.variant.name}/{'+'.join(self.languages)}/{self.seed}"


FULL = Variant("NLT, then LE")
# The steps and batches of AcquireConfig: several times the work, so on one seed.
DEFAULTS = Variant(
    "the default settings",
    {
        "nlt": AcquireConfig().nlt.model_dump(),
        "le": AcquireConfig().le.model_dump(),
    },
    seeds=1,
)
NLT_ALONE = Variant("NLT alone", {"nlt": {"steps": TOTAL}, "le": NONE})
# Alone, LE starts from nothing and needs NLT's rate, not the small one of a second stage.
LE_ALONE = Variant("LE alone", {"nlt": NONE, "le": {"steps": TOTAL, "lr": BASE.nlt.lr}})
NO_ACQUIRERS = Variant("no acquirers", {"acquirers": False})
AT_RANDOM = Variant("learned vocabulary, rows at random", {"rows": "random"})
M_BERT_LIKE = Variant("vocabulary and embeddings of a multilingual BERT", {"vocabulary": BERT})
HIDDEN = [Variant(f"H = {size}", {"hidden": size}) for size in (16, 32, 64, 128, 256)]
TOGETHER = Variant("all languages in one run", together=True)
SHARES = [Variant(f"{100 * part:g} % of the data", share=part) for part in (0.01, 0.03, 0.1, 0.3)]
# A native's weights want a smaller rate than fresh ones.
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
        Table("tower", "Against tuning the whole text tower", (FULL, TOWER)),
        Table("modules", "Acquirers and embeddings", (FULL, NO_ACQUIRERS, AT_RANDOM, M_BERT_LIKE)),
        Table("turn", "Languages added one after another", (PACKS_IN_TURN, TOWER_IN_TURN)),
        Table("data", "Amount of data", (FULL, *SHARES)),
        Table("hidden", "Hidden size of the acquirers", (FULL, *HIDDEN)),
        Table("together", "One at a time, or together", (FULL, TOGETHER)),
    )
}


def runs(tables: Sequence[Table], languages: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Every run of the tables once, in their order."""
    by_key: dict[str, Run] = {}
    for table in tables:
        # Language by language, so that a part of a table has whole rows.
        for language in languages:
            for seed in seeds:
                for variant in table.variants:
                    if seed not in seeds[: variant.seeds]:
                        continue
                    run = Run(variant, group_of(variant, language, languages), seed)
                    by_key.setdefault(run.key, run)
    return list(by_key.values())


def group_of(variant: Variant, language: str, languages: Sequence[str]) -> tuple[str, ...]:
    """The languages of the run that a language of a variant is measured by."""
    if variant.together:
        return tuple(languages)
    return tuple(languages[:IN_TURN]) if variant.in_turn else (language,)
