"""The best configs again, with seeds that had no part in choosing them, beside the base config.

The best of many trials is chosen for its luck too. What a config is worth is its mean over fresh seeds; the difference
to the number it was chosen by is the winner's curse, which the report shows.
"""

from collections.abc import Sequence

from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest
from genrec.errors import ConfigError, RunError
from genrec.tuning.best import BASE, write_best
from genrec.tuning.config import GridSearch, NoScheduler, SweepConfig
from genrec.tuning.director import ranking
from genrec.tuning.records import Sweep, SweepDir, Trial, read_sweep
from genrec.tuning.space import Params
from genrec.tuning.sweep import Show, Told, alone, keep_spec, run_listed

FIRST_FRESH_SEED = 1_000
"""Added to the base's seed: far from those that a search over `seed` would name."""


def retrain_best(
    spec: SweepConfig,
    base: ExperimentConfig,
    manifest: Manifest,
    number: int,
    num_seeds: int,
    tell: tuple[Show, Told],
) -> Sweep:
    """Trains the `number` best configs of a sweep, and the base, with fresh seeds; goes on where it was killed.

    It has the sweep's budget of hours and worker hours once more; a larger one later goes on with what was cut off.

    Raises RunError when the sweep is not finished, is another one than the file says, or is being run by another
    command; ConfigError when it has no trial with a value.
    """
    folder = SweepDir(spec.root)
    if not folder.record_path.is_file():
        raise _not_ended(folder)
    with alone(folder):
        return _retrain(folder, spec, base, manifest, (number, num_seeds), tell)


def _retrain(
    folder: SweepDir,
    spec: SweepConfig,
    base: ExperimentConfig,
    manifest: Manifest,
    wanted: tuple[int, int],
    tell: tuple[Show, Told],
) -> Sweep:
    number, num_seeds = wanted
    sweep = read_sweep(folder)
    if sweep is None or sweep.state == "running":
        raise _not_ended(folder)
    keep_spec(folder, spec, base)  # a base that has changed since is not what the sweep chose with
    chosen = ranking(sweep.trials, spec.metrics[0], spec.modes[0])[:number]
    if not chosen:
        raise ConfigError(f"No trial of the sweep in {folder.root} has a value, so there is no best to train again.")
    listed = listed_trials(spec, base, chosen, num_seeds)
    retrained = SweepDir(folder.retrained_path)
    plain = spec.model_copy(
        update={
            "name": f"{spec.name}-retrained",
            "searcher": GridSearch(name="grid"),
            "scheduler": NoScheduler(name="none"),
            # Hours and worker hours count from nothing again: what a retraining may cost, the sweep's file says too.
            "budget": spec.budget.model_copy(update={"trials": len(listed)}),
        }
    )
    _refuse_another(retrained, read_sweep(retrained), listed)
    done = run_listed(retrained, plain, base, manifest, listed, tell)
    write_best(folder, spec, base, sweep)
    return done


def listed_trials(
    spec: SweepConfig, base: ExperimentConfig, chosen: Sequence[Trial], num_seeds: int
) -> list[tuple[str, Params]]:
    """(group, settings) of every training: the base first, then the chosen trials, each with all seeds.

    The base comes once, also when it is one of the chosen: trial 0 is the base, until it takes over a checkpoint.
    """
    groups: list[tuple[str, Params]] = [(BASE, {})]
    groups += [(trial.id, trial.settings) for trial in chosen if trial.number or trial.progress.life]
    seeds = [base.seed + FIRST_FRESH_SEED + place for place in range(num_seeds)]
    return [(group, {**params, "seed": seed}) for group, params in groups for seed in seeds]


def _not_ended(folder: SweepDir) -> RunError:
    return RunError(
        f"The sweep in {folder.root} has not come to its end; run `genrec tune` without --retrain-best first."
    )


def _refuse_another(folder: SweepDir, known: Sweep | None, listed: Sequence[tuple[str, Params]]) -> None:
    if known is None:
        return
    before = [trial.params for trial in known.trials]
    if before != [params for _, params in listed][: len(before)]:
        raise RunError(
            f"{folder.root} holds the retraining of other configs or seeds; give the same --retrain-best and "
            "--retrain-seeds, or remove that folder."
        )
