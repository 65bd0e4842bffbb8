"""From a search space to the settings of a trial: draws, grids, conditions, and the config that comes of them."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from genrec.config import ExperimentConfig, config_from_dict
from genrec.config_errors import models_in, tags_of
from genrec.errors import ConfigError
from genrec.overrides import apply_overrides
from genrec.semantic.run_map import as_made
from genrec.tuning.config import Domain, SweepConfig, set_value

Params = dict[str, Any]
"""Setting -> value, for the settings that a trial searches."""

MAX_GRID = 10_000

MAX_DRAWS = 5_000
"""Random draws among which a setting must be searched once, or else its condition counts as one that never holds."""


def value_of(values: Mapping[str, Any], key: str) -> Any:
    """`section.field` of nested dictionaries; None where there is no such setting."""
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def is_active(domain: Domain, params: Params, base: Mapping[str, Any]) -> bool:
    """Whether a setting is searched beside these, which come before it; `base` has the others."""
    for key, wanted in domain.when.items():
        value = params.get(key, value_of(base, key))
        if value not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


def draw(sweep: SweepConfig, number: int, base: Mapping[str, Any]) -> Params:
    """The settings of random draw `number`: a function of the sweep's seed and the number, and nothing else."""
    params: Params = {}
    for place, (key, domain) in enumerate(sweep.space.items()):
        generator = np.random.default_rng([sweep.seed, number, place])  # of its own: conditions must not shift others
        value = draw_value(domain, generator)
        if is_active(domain, params, base):
            params[key] = value
    return params


def draw_value(domain: Domain, generator: np.random.Generator) -> Any:
    """One value of a domain."""
    if domain.choice is not None:
        return domain.choice[int(generator.integers(len(domain.choice)))]
    if domain.integer is not None:
        return int(generator.integers(domain.integer[0], domain.integer[1] + 1))
    if domain.log_uniform is not None:
        low, high = domain.log_uniform
        return rounded(math.exp(generator.uniform(math.log(low), math.log(high))), low, high)
    low, high = domain.uniform or (0.0, 0.0)
    return rounded(float(generator.uniform(low, high)), low, high)


def rounded(value: float, low: float, high: float) -> float:
    """A value that people can read, four significant digits, inside its range."""
    return min(max(float(f"{value:.4g}"), low), high)


def draws(sweep: SweepConfig, base: Mapping[str, Any]) -> Iterator[Params]:
    """Random draws without repetition; ends where a small space has no others."""
    seen: set[str] = set()
    repeated = 0
    for number in itertools.count():
        params = draw(sweep, number, base)
        text = json.dumps(params, sort_keys=True)
        if text in seen:
            repeated += 1
            if repeated > 200:
                return
            continue
        repeated = 0
        seen.add(text)
        yield params


def grid(sweep: SweepConfig, base: Mapping[str, Any]) -> list[Params]:
    """Every combination; a setting whose condition does not hold takes no part. Raises ConfigError when it is huge."""
    found: list[Params] = [{}]
    for key, domain in sweep.space.items():
        values = grid_values(key, domain)
        found = [
            {**params, key: value} if active else params
            for params in found
            for active in [is_active(domain, params, base)]
            for value in (values if active else [None])
        ]
        if len(found) > MAX_GRID:
            raise ConfigError(
                f"The grid has more than {MAX_GRID:,} trials at space.{key}; give fewer values, or use searcher random."
            )
    return found


def grid_values(key: str, domain: Domain) -> list[Any]:
    """The values of a domain on a grid; raises ConfigError for a range without `points`."""
    if domain.choice is not None:
        return domain.choice
    if domain.integer is not None:
        low, high = domain.integer
        if domain.points is None:
            return list(range(low, high + 1))
        return sorted({int(value) for value in np.linspace(low, high, domain.points).round()})
    bounds = domain.uniform or domain.log_uniform
    if domain.points is None or bounds is None:
        raise ConfigError(f"space.{key} is a range, which a grid can only try with `points`; add points: 3, say.")
    spaced = np.linspace if domain.uniform is not None else np.geomspace
    return [rounded(float(value), *bounds) for value in spaced(bounds[0], bounds[1], domain.points)]


def base_params(sweep: SweepConfig, base: Mapping[str, Any]) -> Params:
    """The base config's own values of the settings that are searched."""
    params: Params = {}
    for key, domain in sweep.space.items():
        value = value_of(base, key)
        if is_active(domain, params, base) and not isinstance(value, dict):
            params[key] = value
    return params


def config_with(base: Mapping[str, Any], params: Params, origin: str) -> ExperimentConfig:
    """The base config with a trial's settings; raises ConfigError when they do not fit together.

    Where a section becomes another kind (`model.name`), settings of the base that the new kind does not know go. With
    another map of codes come the settings that it was made with.
    """
    values = apply_overrides(base, [])
    for key, value in params.items():
        if key.endswith(".name") and value != value_of(values, key):
            _change_kind(values, key.split(".")[:-1], value)
        set_value(values, key, value)
    config = config_from_dict(values, origin)
    return as_made(config) if "semantic_ids.path" in params else config


def _change_kind(values: dict[str, Any], path: list[str], kind: Any) -> None:
    section = values
    models = [ExperimentConfig]
    for part in path:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        models = [child for field in fields for child in models_in(field.annotation)]  # type: ignore[misc]
        section = section.get(part) or {}
    chosen = [model for model in models if kind in tags_of(model)]
    if chosen:
        known = set(chosen[0].model_fields)
        for name in [name for name in section if name not in known]:
            del section[name]


def check_space(sweep: SweepConfig, base: Mapping[str, Any], num_draws: int = 64) -> None:
    """Raises ConfigError when a setting is unknown, or cannot take any value that the space gives it."""
    unconditional: set[str] = set(sweep.space)
    for key, domain in sweep.space.items():
        for condition in domain.when:
            before = list(sweep.space)[: list(sweep.space).index(key)]
            if condition not in before and (condition in unconditional or value_of(base, condition) is None):
                raise ConfigError(
                    f"space.{key}.when names {condition}, which must be a setting of the base config, or one of the "
                    "space that stands before it; put it there."
                )
    samples = _samples(sweep, base, num_draws)
    failed: dict[str, Params] = {}
    works: set[str] = set()
    for params in samples:
        try:
            config_with(base, params, "a trial")
            works |= params.keys()
        except ConfigError:
            for key in params:
                failed.setdefault(key, params)
    hopeless = [key for key in failed if key not in works]
    for key in hopeless:
        _blame(sweep, base, key, failed[key])
    for key in hopeless:  # each is good by itself: what they are together with is not
        _blame_together(base, key, failed[key])
    silent = [key for key in sweep.space if key not in works]
    if silent:
        raise ConfigError(
            f"space.{silent[0]} is never searched: its `when` holds in no trial that was drawn; mend the "
            "condition, or leave the setting out."
        )


def _samples(sweep: SweepConfig, base: Mapping[str, Any], num_draws: int) -> list[Params]:
    """Trials that show what the space can give; for a setting that is rarely searched, the first that searches it."""
    if sweep.searcher.name == "grid":
        everything = grid(sweep, base)
        found, rest = everything[:1_000], iter(everything[1_000:])
    else:
        drawn = itertools.islice(draws(sweep, base), MAX_DRAWS)
        found, rest = list(itertools.islice(drawn, num_draws)), drawn
    missing = set(sweep.space).difference(*found)
    while missing and (params := next(rest, None)) is not None:
        if missing & params.keys():
            found.append(params)
            missing -= params.keys()
    return found


def _blame(sweep: SweepConfig, base: Mapping[str, Any], key: str, params: Params) -> None:
    """Raises ConfigError when a setting cannot be used by itself; others may have spoilt the trial that it was in."""
    alone = {name: params[name] for name in (*sweep.space[key].when, key) if name in params}
    try:
        config_with(base, alone, "a trial")
    except ConfigError as error:
        raise ConfigError(f"space.{key} cannot be used in any trial: {' '.join(str(error).split())}") from error


def _blame_together(base: Mapping[str, Any], key: str, params: Params) -> None:
    """Raises ConfigError with what is wrong with a trial whose settings are good one by one."""
    try:
        config_with(base, params, "a trial")
    except ConfigError as error:
        raise ConfigError(
            f"space.{key} cannot be used in any trial that was tried, because of the settings beside it: "
            f"{' '.join(str(error).split())}"
        ) from error
