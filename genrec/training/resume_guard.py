"""Which settings a run may change when it goes on.

Free settings change nothing about what is learned: where and on how many workers it runs, how often it logs. A few
others change the rest of the run and not what was done (its length, the learning rate): they need to be named with
`--allow-change`. All others decide what a step *is*, so another value is another run.
"""

from collections.abc import Sequence

from genrec.config import ExperimentConfig
from genrec.config_neutral import NEUTRAL, is_covered
from genrec.errors import RunError
from genrec.run_dir import config_differences

FREE = (*NEUTRAL, "faults")
"""Settings, or whole sections, that a resumed run may change without being asked."""

ON_REQUEST = ("engine.matmul_precision", "engine.precision", "evaluation", "optimizer", "train", "loss")
"""Settings, or whole sections, that `--allow-change` may name."""

KINDS = ("optimizer.name", "optimizer.table.name", "loss.learn_temperature")
"""Settings inside of those that never change: what is in a checkpoint is of another kind."""


def keep_packing(old: ExperimentConfig, new: ExperimentConfig) -> ExperimentConfig:
    """`new` with the run's packing, unless it names one: steps stay what they are in any number of micro-batches."""
    if new.batch.packed_parts is not None:
        return new
    packed = old.batch.parts_packed_for
    kept = None if packed == new.batch.micro_batches_per_step else packed
    return new.model_copy(update={"batch": new.batch.model_copy(update={"packed_parts": kept})})


def check_changes(
    run: str, old: ExperimentConfig, new: ExperimentConfig, allowed: Sequence[str] = ()
) -> tuple[str, ...]:
    """The differences that a resumed run takes over, as `section.field: old -> new`.

    Raises RunError with every difference that it may not take over; `allowed` are names given with `--allow-change`.
    """
    for name in allowed:
        if name in KINDS or not (is_covered(name, ON_REQUEST) or is_covered(name, FREE)):
            raise RunError(
                f"--allow-change {name} is not possible: it decides what a step of run {run} is; use another name=..., "
                f"or start over with --fresh. Possible are {', '.join(ON_REQUEST)} and settings inside them."
            )
    differences = {text.partition(":")[0]: text for text in config_differences(old, new)}
    if old.batch.parts_packed_for == new.batch.parts_packed_for:
        differences.pop("batch.packed_parts", None)
    refused = {k: text for k, text in differences.items() if k in KINDS or not is_covered(k, (*FREE, *allowed))}
    if refused:
        on_request = [key for key in refused if key not in KINDS and is_covered(key, ON_REQUEST)]
        way_out = (
            f"add {' '.join(f'--allow-change {key}' for key in on_request)} to go on with the new values, "
            if len(on_request) == len(refused)
            else ""
        )
        raise RunError(
            f"Run {run} exists with another config; {way_out}use another name=..., or start over with --fresh. "
            "Differences (run -> now):\n  " + "\n  ".join(refused.values())
        )
    return tuple(differences.values())
