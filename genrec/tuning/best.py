"""best.yaml: the best config of a sweep, as a run of its own.

The best of many trials was chosen for its luck too. So where the best configs were trained again with fresh seeds,
their means over those seeds decide, and the base config may win.
"""

from dataclasses import dataclass

import yaml

from genrec.config import ExperimentConfig
from genrec.evaluation.seeds import SeedMean, seed_mean
from genrec.run_dir import write_atomically
from genrec.tuning.config import SweepConfig
from genrec.tuning.records import Sweep, SweepDir, Trial, read_sweep, trial_id
from genrec.tuning.space import Params, config_with

BASE = "base"
"""The group of the base config in a retraining; the others are called by their trial."""


@dataclass(frozen=True, slots=True)
class _Best:
    params: Params
    sentence: str


def write_best(folder: SweepDir, spec: SweepConfig, base: ExperimentConfig, sweep: Sweep) -> None:
    """Writes best.yaml; nothing where no trial has a value."""
    if sweep.best is None:
        return
    best = _of_retraining(folder, spec, sweep) or _of_sweep(spec, sweep, sweep.trials[sweep.best])
    values = {**base.model_dump(mode="json"), "name": f"{spec.name}-best"}
    config = config_with(values, best.params, "the best trial")
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_atomically(folder.best_path, f"# genrec train {folder.best_path}\n#\n# {best.sentence}\n{text}")


def _of_sweep(spec: SweepConfig, sweep: Sweep, trial: Trial) -> _Best:
    assert trial.best is not None
    value = trial.best[spec.metrics[0]]
    return _Best(
        trial.settings,
        f"Trial {trial.id} of sweep {spec.name}: {spec.metrics[0]} {value:.6g} on validation, the best of "
        f"{len(sweep.trials)} trials.",
    )


def _of_retraining(folder: SweepDir, spec: SweepConfig, sweep: Sweep) -> _Best | None:
    """The best by its mean over fresh seeds; None while the best trial of the sweep has not been trained again."""
    again = read_sweep(SweepDir(folder.retrained_path))
    if again is None or again.state != "finished":
        return None
    found: dict[str, list[Trial]] = {}
    for trial in again.trials:
        if trial.best is not None and trial.state == "finished":
            found.setdefault(trial.group or "", []).append(trial)
    best = sweep.trials[sweep.best or 0]
    own = BASE if best.number == 0 and not best.progress.life else trial_id(best.number)
    if own not in found:
        return None
    means = {group: _mean(trials, spec.metrics[0]) for group, trials in found.items()}
    sign = 1 if spec.modes[0] == "max" else -1
    winner = max(means, key=lambda group: sign * means[group].mean)
    mean = means[winner]
    params = {} if winner == BASE else sweep.trials[int(winner)].settings
    name = "The base config" if winner == BASE else f"Trial {winner}"
    return _Best(
        params,
        f"{name} of sweep {spec.name}: {spec.metrics[0]} {mean.mean:.6g} on validation, its mean over "
        f"{mean.num_seeds} fresh seeds, the best of {len(means)} configs that were trained again.",
    )


def _mean(trials: list[Trial], metric: str) -> SeedMean:
    return seed_mean([trial.best[metric] for trial in trials if trial.best is not None])
