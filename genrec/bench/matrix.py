"""The matrix of `genrec bench`: a base config, what is varied, and how each case is measured.

    base: configs/quickstart.yaml          # or a whole config, inline
    fixed: {train.max_steps: 20}           # on top of the base, in every case
    axes: {engine.zero_stage: [0, 2], model.dim: [64, 128]}     # every combination is a case
    cases: {wide: {model.dim: 512}}        # and these, by name
    exclude: [{engine.zero_stage: 0, model.dim: 128}]

Every case's config is checked before anything is measured.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from genrec.config import ExperimentConfig, Section, config_from_dict
from genrec.config_errors import explain_validation_error, read_yaml
from genrec.errors import ConfigError
from genrec.overrides import apply_overrides

Mode = Literal["full", "data-only", "compute-only"]
Value = bool | int | float | str | None
"""What an override sets: rows are flat, so a value is no list and no section."""


class Matrix(Section):
    """What a matrix file holds."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="name of the result")
    base: str | dict[str, Any] = Field(description="config file, or a whole config, that every case starts from")
    fixed: dict[str, Any] = Field({}, description="setting -> value for all cases")
    axes: dict[str, list[Value]] = Field({}, description="values by setting; every combination is a case")
    cases: dict[str, dict[str, Value]] = Field({}, description="further cases by name: settings and their values")
    exclude: list[dict[str, Value]] = Field([], description="combinations of the axes' values that are left out")
    modes: list[Mode] = Field(["full"], min_length=1, description="full, data-only and compute-only")
    repetitions: int = Field(1, ge=1, description="times that each case is measured, each in new processes")
    warmup_steps: int = Field(3, ge=1, description="steps before the clock starts")
    steps: int = Field(10, ge=1, description="steps that are measured")
    timeout_s: float = Field(300, gt=0, description="a case that takes longer, start-up included, is ended")
    memory_limit_bytes: int | None = Field(
        None, ge=1, description="memory that a worker may take beyond what it had before the model; null is no limit"
    )

    @field_validator("axes")
    @classmethod
    def _not_empty(cls, value: dict[str, list[Value]]) -> dict[str, list[Value]]:
        empty = [name for name, values in value.items() if not values]
        if empty:
            raise ValueError(f"{', '.join(empty)} is empty; give it values, or leave it out")
        return value

    @model_validator(mode="after")
    def _different(self) -> "Matrix":
        repeatable: list[tuple[str, Sequence[object]]] = [*self.axes.items(), ("modes", self.modes)]
        for name, values in repeatable:
            if len({_text(value) for value in values}) < len(values):
                raise ValueError(f"{name} has a value twice ({values}); remove one, and use repetitions to repeat")
        strangers = sorted({key for entry in self.exclude for key in entry} - self.axes.keys())
        if strangers:
            raise ValueError(f"exclude names {', '.join(strangers)}, which is no axis; the axes are {list(self.axes)}")
        return self


@dataclass(frozen=True, slots=True)
class Case:
    """One configuration of a matrix. `overrides` are the columns that tell its rows from the others'."""

    name: str
    overrides: dict[str, Value]
    config: ExperimentConfig


@dataclass(frozen=True, slots=True)
class Measurement:
    """A case to be measured once, in new processes: what a worker is told."""

    case: Case
    mode: Mode
    repetition: int

    @property
    def key(self) -> str:
        """Name of its file; another config gives another name."""
        content = json.dumps([self.case.config.model_dump(mode="json"), self.mode, self.repetition], sort_keys=True)
        slug = re.sub(r"[^A-Za-z0-9.=-]+", "_", self.case.name)[:80]
        return f"{slug}-{self.mode}-{self.repetition}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def load_matrix(path: Path, overrides: Sequence[str] | None = None) -> Matrix:
    """The checked matrix of a YAML file; raises ConfigError with every problem, each with its key and rule.

    `overrides` are `matrix_setting=value`.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `base:`, `axes:` and so on; see benchmarks/matrices/smoke.yaml.")
    return explain_validation_error(Matrix, apply_overrides({"name": path.stem, **values}, overrides or []), str(path))


def output_of(matrix: Matrix) -> Path:
    """Where the result goes unless the command says otherwise."""
    return Path("benchmarks/out") / f"{matrix.name}.json"


def cases_of(matrix: Matrix, origin: str) -> list[Case]:
    """The cases in order: the axes' combinations, the last axis fastest, then those with a name.

    Raises ConfigError that names the first case whose config is refused, for whatever reason.
    """
    base = matrix.base if isinstance(matrix.base, dict) else read_yaml(matrix.base)
    if not isinstance(base, dict):
        raise ConfigError(f"{origin}: base ({matrix.base}) must be a config with `section:` entries.")
    combinations: list[dict[str, Value]] = [
        dict(zip(matrix.axes, values, strict=True)) for values in itertools.product(*matrix.axes.values())
    ]
    for entry in matrix.exclude:
        if not any(_matches(combination, entry) for combination in combinations):
            raise ConfigError(f"{origin}: exclude has {entry}, which no combination of the axes matches; remove it.")
    kept = [c for c in combinations if not any(_matches(c, entry) for entry in matrix.exclude)]
    named = {_name_of(combination): combination for combination in kept if combination or not matrix.cases}
    twice = sorted(named.keys() & matrix.cases.keys())
    if twice:
        raise ConfigError(f"{origin}: the case {twice[0]} is a combination of the axes too; give it another name.")
    named |= matrix.cases
    if not named:
        raise ConfigError(f"{origin}: exclude leaves no case; remove some of its {len(matrix.exclude)} entries.")
    return [
        Case(name, overrides, _config_of(base, {**matrix.fixed, **overrides}, name, origin))
        for name, overrides in named.items()
    ]


def measurements_of(matrix: Matrix, cases: list[Case]) -> list[Measurement]:
    """What is to be measured, a whole round of all cases before the next repetition."""
    return [
        Measurement(case, mode, repetition)
        for repetition in range(matrix.repetitions)
        for case in cases
        for mode in matrix.modes
    ]


def _config_of(base: dict[str, Any], overrides: dict[str, Any], name: str, origin: str) -> ExperimentConfig:
    values = json.loads(json.dumps(base))
    for key, value in overrides.items():
        *sections, last = key.split(".")
        node = values
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{origin}, case {name}: {key} is inside {section}, which is the value {node!r}.")
        node[last] = value
    return config_from_dict(values, f"{origin}, case {name},")


def _matches(combination: Mapping[str, Value], entry: Mapping[str, Value]) -> bool:
    return all(_text(combination[key]) == _text(value) for key, value in entry.items())


def _name_of(combination: Mapping[str, Value]) -> str:
    """`zero_stage=2 dim=64`: the keys' last parts, where they differ from each other."""
    tails = [key.rpartition(".")[2] for key in combination]
    parts = [
        f"{tail if tails.count(tail) == 1 else key}={_text(value)}"
        for (key, value), tail in zip(combination.items(), tails, strict=True)
    ]
    return " ".join(parts) or "base"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
