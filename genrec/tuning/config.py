"""The sweep file: a base config, a search space over its settings, and how to search. It is checked before any trial.

A sweep lives in `sweeps_dir/name`, as a run lives in `runs_dir/name`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from genrec.config import RUN_NAME_PATTERN, ExperimentConfig, config_from_dict
from genrec.config_data import Section, kind_by_default
from genrec.config_errors import explain_validation_error, read_yaml
from genrec.errors import ConfigError
from genrec.overrides import apply_overrides

SPEED, SIZE, LOSS = "events_per_s", "num_parameters", "loss"
PLAIN_METRICS = {LOSS: "min", SPEED: "max", SIZE: "min"}
"""Metrics of a trial besides those of its validations, and what is better."""


class Domain(Section):
    """The values that one setting may take: exactly one of `choice`, `uniform`, `log_uniform` and `integer`."""

    choice: list[Any] | None = Field(None, description="one of these values")
    uniform: tuple[float, float] | None = Field(None, description="a number between two")
    log_uniform: tuple[float, float] | None = Field(None, description="the same, every magnitude equally likely")
    integer: tuple[int, int] | None = Field(None, description="a whole number between two, both included")
    points: int | None = Field(None, ge=1, description="values that a grid takes from a range; ends included")
    when: dict[str, Any] = Field({}, description="setting -> value or values at which this one is searched")

    @model_validator(mode="after")
    def _one_kind(self) -> "Domain":
        given = [name for name in ("choice", "uniform", "log_uniform", "integer") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "exactly one of choice, uniform, log_uniform and integer says which values there are, not "
                f"{', '.join(given) or 'none'}; write {{choice: [1, 2]}}, say"
            )
        if self.choice is not None and not self.choice:
            raise ValueError("choice is empty, so there is nothing to try; give it values, or leave the setting out")
        values = [f"{type(value).__name__} {value!r}" for value in self.choice or ()]  # 1 and true are not the same
        if len(set(values)) != len(values):
            raise ValueError(f"choice {self.choice} has a value twice, which would be the same trial twice; remove it")
        bounds = self.uniform or self.log_uniform or self.integer
        if bounds is None and self.points is not None:
            raise ValueError(f"points ({self.points}) divides a range, and choice has its values already; remove it")
        if bounds is not None and bounds[0] > bounds[1]:
            raise ValueError(f"{given[0]} {list(bounds)} must go from the smaller to the larger; turn it round")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform {list(self.log_uniform)} must begin above 0; raise its lower end")
        return self


class RandomSearch(Section):
    """Independent draws; trial n is a function of the sweep's seed and n alone."""

    name: Literal["random"]


class GridSearch(Section):
    """Every combination, in the order of the file; ranges need `points`."""

    name: Literal["grid"]


class OptunaSearch(Section):
    """Optuna's TPE sampler, which learns from the trials that are done; several metrics give a Pareto front."""

    name: Literal["optuna"]
    startup_trials: int = Field(8, ge=1, description="random trials before it begins to learn")


Searcher = Annotated[RandomSearch | GridSearch | OptunaSearch, Field(discriminator="name"), kind_by_default("random")]


class NoScheduler(Section):
    """Every trial trains to its end."""

    name: Literal["none"]


class AshaScheduler(Section):
    """Asynchronous successive halving (Li et al., 2020): at every rung only the best part goes on."""

    name: Literal["asha"]
    grace_epochs: float = Field(1, gt=0, description="epochs that every trial gets; the first rung")
    reduction: float = Field(3, gt=1, description="one in so many goes on, to a rung so many times as far")


class MedianScheduler(Section):
    """A trial ends when its best is below the median of the others' means up to the same epoch (Vizier)."""

    name: Literal["median"]
    grace_epochs: float = Field(1, gt=0, description="epochs that every trial gets")
    min_trials: int = Field(3, ge=1, description="other trials that must have come as far")


class PbtScheduler(Section):
    """Population-based training (Jaderberg et al., 2017): the worst go on from checkpoints of the best, changed."""

    name: Literal["pbt"]
    interval_epochs: float = Field(1, gt=0, description="epochs between two comparisons")
    quantile: float = Field(0.25, gt=0, le=0.5, description="part of the population that takes over, and from which")
    resample: float = Field(0.25, ge=0, le=1, description="probability of a new draw instead of a step up or down")


Scheduler = Annotated[
    NoScheduler | AshaScheduler | MedianScheduler | PbtScheduler,
    Field(discriminator="name"),
    kind_by_default("none"),
]


class BudgetConfig(Section):
    """Where a sweep ends. A larger budget later goes on with the trials that were cut off."""

    trials: int | None = Field(None, ge=1, description="trials; null is the whole grid")
    hours: float | None = Field(None, gt=0, description="hours of the command, over all its starts")
    worker_hours: float | None = Field(None, gt=0, description="hours of all workers of all trials")
    retries: int = Field(1, ge=0, description="times a trial is started again after it has failed")
    price_per_worker_hour: float | None = Field(
        None, ge=0, description="what an hour of one worker costs, for the report"
    )


class SweepConfig(Section):
    """One sweep."""

    name: str = Field(
        pattern=RUN_NAME_PATTERN,
        max_length=95,  # NAME-best is a run
        description="sweep name: letters, digits, dot, dash and underscore",
    )
    sweeps_dir: str = Field("sweeps", pattern=r"^[^:]+$", description="folder that holds the sweeps' folders; no URI")
    base: str = Field(description="config that trials change, relative to the sweep file")
    fixed: dict[str, Any] = Field({}, description="setting -> value for all trials")
    space: dict[str, Domain] = Field(min_length=1, description="setting -> the values to try")
    metric: str | list[str] = Field(
        "ndcg@10", description="what is optimised; several give a Pareto front, without a scheduler"
    )
    mode: Literal["max", "min"] | list[Literal["max", "min"]] | None = Field(
        None, description="max or min, for each metric; null is what the metric's name says"
    )
    seed: int = Field(1, ge=0, lt=2**31, description="decides what is tried")
    searcher: Searcher = Field(RandomSearch(name="random"), description="what is tried next")
    scheduler: Scheduler = Field(NoScheduler(name="none"), description="which trials end early")
    budget: BudgetConfig = Field(BudgetConfig(), description="where the sweep ends")
    max_concurrent: int | None = Field(None, ge=1, description="trials at a time; null is as many as there is room for")

    @field_validator("space", mode="before")
    @classmethod
    def _space(cls, value: Any) -> Any:
        if value is None or value == {}:
            raise ValueError("space is empty, so all trials would be alike; name settings and their values")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "SweepConfig":
        if isinstance(self.mode, list) != isinstance(self.metric, list) and self.mode is not None:
            raise ValueError(f"mode ({self.mode}) must be of the form of metric ({self.metric}): one, or one for each")
        if isinstance(self.metric, list) and (len(set(self.metric)) != len(self.metric) or not self.metric):
            raise ValueError(f"metric {self.metric} must name different metrics; remove the odd one")
        if isinstance(self.metric, list) and isinstance(self.mode, list) and len(self.metric) != len(self.mode):
            raise ValueError(f"mode has {len(self.mode)} entries and metric {len(self.metric)}; give one for each")
        if len(self.metrics) > 1 and self.scheduler.name != "none":
            raise ValueError(
                f"several metrics ({', '.join(self.metrics)}) have no one order, so scheduler {self.scheduler.name} "
                "cannot tell which trials to end; use scheduler: {name: none}, or one metric"
            )
        if self.searcher.name != "grid" and self.budget.trials is None:
            raise ValueError(
                f"budget.trials is required with searcher {self.searcher.name}; add budget: {{trials: 16}}"
            )
        if self.scheduler.name == "pbt" and self.searcher.name != "random":
            raise ValueError(
                f"scheduler pbt draws its population at random, and searcher is {self.searcher.name}; leave it out"
            )
        if self.scheduler.name == "pbt" and self.budget.trials == 1:
            raise ValueError("budget.trials (1) is the population of scheduler pbt, and one has none to learn from")
        return self

    @model_validator(mode="after")
    def _one_value(self) -> "SweepConfig":
        twice = [key for key in self.space if key in self.fixed]
        if twice:
            raise ValueError(
                f"{', '.join(twice)} is in fixed, with one value for all trials, and in space, with several; "
                "leave one out"
            )
        return self

    @model_validator(mode="after")
    def _lower_is_better(self) -> "SweepConfig":
        for name, mode in zip(self.metrics, self.modes, strict=True):
            if name == "loss" and mode == "max":
                raise ValueError(
                    "mode is max for loss, so the worst trial would be the best; use min, or leave mode out"
                )
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is optimised; the first decides where one must."""
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)

    @property
    def modes(self) -> tuple[Literal["max", "min"], ...]:
        """`max` or `min` for each metric."""
        if isinstance(self.mode, list):
            return tuple(self.mode)
        if self.mode is not None:
            return (self.mode,)
        return tuple("min" if PLAIN_METRICS.get(name) == "min" else "max" for name in self.metrics)

    @property
    def root(self) -> Path:
        """The sweep's folder."""
        return Path(self.sweeps_dir).absolute() / self.name


MAP = "semantic_ids.path"
"""The one path that a sweep may search: where the map of codes is."""

OWN_KEYS = ("name", "runs_dir", "data", "tracking", "train.start_from", "train.checkpoint_dir")
"""Settings that a sweep cannot search: trials share one data set and one vocabulary, and have names of their own."""

MEASURES = (
    *(
        f"evaluation.{name}"
        for name in ("ks", "metric", "filter_seen", "max_validation_users", "decoding", "beam_width")
    ),
    "sequence.target_actions",
    "sequence.train_on",
)
"""Settings that decide what a trial is measured on or by, so that trials with different ones cannot be compared."""


def load_sweep(path: Path, overrides: list[str] | None = None) -> tuple[SweepConfig, ExperimentConfig]:
    """The checked sweep of a YAML file, and its base config with what is fixed.

    Raises ConfigError with every problem of the file, or of the base.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `section:` entries, as configs/sweeps/sasrec_ml1m.yaml does.")
    sweep = explain_validation_error(SweepConfig, apply_overrides(values, overrides or []), str(path))
    _check_keys(sweep)
    base_path = path.parent / sweep.base
    base_values = read_yaml(base_path)
    if not isinstance(base_values, dict):
        raise ConfigError(f"{base_path} must hold `section:` entries; see configs/quickstart.yaml.")
    base = config_from_dict(_with_fixed(base_values, sweep.fixed), f"{base_path} with `fixed`")
    _check_metrics(sweep, base)
    return sweep, _judged_by(sweep, base)


def _check_keys(sweep: SweepConfig) -> None:
    for key in sweep.space:
        if key.partition(".")[0] == "semantic_ids" and key != MAP:
            raise ConfigError(
                f"space.{key} would have no effect: a trial reads the map of codes at semantic_ids.path, which is made "
                "before; make a map for each value with `genrec tokenize`, and search semantic_ids.path."
            )
        touched = [
            own for own in (*OWN_KEYS, *MEASURES) if f"{key}.".startswith(f"{own}.") or own.startswith(f"{key}.")
        ]
        if touched:
            raise ConfigError(
                f"space.{key}: a sweep cannot search {touched[0]}, because all trials share one prepared data set and "
                "are measured alike; set it in `base` or `fixed`, or make a sweep for each value."
            )


def _judged_by(sweep: SweepConfig, base: ExperimentConfig) -> ExperimentConfig:
    """The base with the sweep's metric as its own, so that a trial keeps, and stops by, what the sweep ranks it by."""
    metric = sweep.metrics[0]
    if metric in PLAIN_METRICS or "evaluation.metric" in sweep.fixed:
        return base
    return base.model_copy(update={"evaluation": base.evaluation.model_copy(update={"metric": metric})})


def set_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets `section.field` in nested dictionaries; raises ConfigError where a section is a plain value."""
    node = values
    *sections, last = key.split(".")
    for section in sections:
        child = node.get(section)
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: {section} is the value {child!r}, not a section; name the setting itself.")
        node = child
    node[last] = value


def _with_fixed(values: dict[str, Any], fixed: dict[str, Any]) -> dict[str, Any]:
    copy = apply_overrides(values, [])
    for key, value in fixed.items():
        set_value(copy, key, value)
    return copy


def _check_metrics(sweep: SweepConfig, base: ExperimentConfig) -> None:
    ranked = [f"{name}@{k}" for name in ("hr", "ndcg", "mrr") for k in base.evaluation.ks]
    for metric in sweep.metrics:
        if metric not in (*ranked, *PLAIN_METRICS):
            raise ConfigError(
                f"metric {metric!r} is never reported by a trial of {sweep.base}; it reports "
                f"{', '.join((*ranked, *PLAIN_METRICS))}. Choose one of these, or add its cut-off to evaluation.ks."
            )
    if base.refits:
        raise ConfigError(
            "A sweep chooses by validation, and sequence.train_on=train+validation leaves nothing to validate on; set "
            "it to train, and refit the best run afterwards with `genrec refit`."
        )
