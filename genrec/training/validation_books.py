"""The books of a run with background validations: a metric line for every result, and the best of all.

No torch here: the driver closes the books of a run when its workers have ended.
"""

import logging
import time
from dataclasses import replace
from typing import Any

from genrec.config import ExperimentConfig
from genrec.errors import RunError
from genrec.run_dir import RunDir, read_metrics
from genrec.training.checkpoint import read_info
from genrec.training.checkpoint_list import StoredCheckpoint
from genrec.training.state import TrainState
from genrec.training.tracking import Tracker
from genrec.training.validations import (
    Validated,
    best_of,
    protocol_of,
    read_result,
    read_results,
    result_path,
    take_up,
    write_result,
)

logger = logging.getLogger(__name__)


class Books:
    """Writes a line into metrics.jsonl for every result, once, and keeps the run's best up to date.

    One process at a time has them: worker 0 while the run trains, the driver afterwards.
    """

    def __init__(self, config: ExperimentConfig, run: RunDir, tracker: Tracker, state: TrainState) -> None:
        self.results = read_results(run.validations_path)
        self._config = config
        self._run = run
        self._tracker = tracker
        self._protocol = protocol_of(config.model_dump(mode="json"))
        lines = read_metrics(run.metrics_path)
        written = [line for line in lines if line["kind"] in ("validation", "validation_failed")]
        # Those after the step that the run goes on from are taken back by its start.
        self._written = {(line["kind"], line["step"]) for line in written if line["step"] <= state.step}

    def look(self, state: TrainState) -> None:
        """Takes up the results that are new."""
        self.results |= read_results(self._run.validations_path, known=self.results)
        take_up(state, self.results, self._protocol)
        for step in sorted(self.results):
            line = self._line(self.results[step])
            if (line["kind"], step) in self._written:
                continue
            self._tracker.log(line)
            self._written.add((line["kind"], step))

    def leave_out(self, state: TrainState, num_waiting: int) -> None:
        """Writes down that the step just done is not validated."""
        problem = (
            f"left out: {num_waiting} validations wait already; raise train.evaluate_every_epochs, "
            "cluster.validation_cpus or evaluation.max_waiting_validations"
        )
        logger.warning("The validation of step %d is %s.", state.step, problem)
        epoch, now = round(state.epochs_done, 6), time.time()
        line = {"kind": "validation_failed", "step": state.step, "epoch": epoch, "time_s": now, "background": True}
        self._tracker.log(line | {"problem": problem})

    def _line(self, result: Validated) -> dict[str, Any]:
        said = {
            "kind": "validation" if result.problem is None else "validation_failed",
            "step": result.step,
            "epoch": round(result.epoch, 6),
            "time_s": time.time(),
            "elapsed_s": round(result.elapsed_s, 3),
            "background": True,
            "seconds_late": round(result.done_s - result.saved_s, 3),
        }
        if result.problem is not None:
            return said | {"problem": result.problem}
        before = [r for r in self.results.values() if r.step <= result.step]
        return said | {
            "metrics": result.metrics,
            **({"heads": result.heads} if result.heads else {}),
            "num_users": result.num_users,
            "seconds": round(result.seconds, 3),
            "best": best_of(before, self._protocol)[1] == result.step,
        }


def write_failure(run: RunDir, checkpoint: StoredCheckpoint, problem: str) -> Validated:
    """Writes, as the result of a checkpoint's validation, why there are no metrics; one that is there already stays."""
    now = time.time()
    step = int(checkpoint.name.removeprefix("step_"))
    known = read_result(result_path(run.validations_path, step))
    if known is not None:
        return known
    result = Validated(step=step, epoch=0.0, elapsed_s=0.0, saved_s=now, done_s=now, protocol=[], problem=problem)
    try:
        info = read_info(*checkpoint)
    except (RunError, OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read: %s", checkpoint, error)  # it may be what the problem is about
    else:
        state = info.state
        result = replace(result, epoch=state.epochs_done, elapsed_s=state.elapsed_s, saved_s=info.time_s or now)
    write_result(run.validations_path, result)
    return result
