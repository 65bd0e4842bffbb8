"""`genrec train --profile`: where the time of a step goes, and a trace of a few steps, of every worker.

After `WARMUP_STEPS` steps, `CLOCKED_STEPS` are measured by section (clock.py), then `TRACED_STEPS` are recorded by
torch.profiler, which slows them down and therefore measures nothing here. It leaves behind

    RUN/profile/breakdown.json     seconds of a step by section, the mean of the workers and each worker's own
    RUN/profile/rank-N.json.gz     the trace of worker N, for Perfetto (ui.perfetto.dev) or chrome://tracing
    a `profile` line in metrics.jsonl with the means
"""

import json
import logging
import time

import torch
from torch.profiler import ProfilerActivity

from genrec.run_dir import write_atomically
from genrec.training.clock import SECTIONS
from genrec.training.context import WorkerContext
from genrec.training.engine import Engine
from genrec.training.meters import StepMeter
from genrec.training.state import TrainState
from genrec.training.tracking import Tracker

logger = logging.getLogger(__name__)

WARMUP_STEPS = 5
CLOCKED_STEPS = 10
TRACED_STEPS = 3
PROFILE_DIR = "profile"


class ProfileHook:
    """Measures the steps after `first_step`, the step that the run (re)started with; every worker has one."""

    def __init__(self, engine: Engine, context: WorkerContext, tracker: Tracker | None, first_step: int) -> None:
        self.engine = engine
        self.context = context
        self.tracker = tracker
        self.first_step = first_step
        self.folder = context.run.root / PROFILE_DIR
        self._clocked_from = first_step
        self._profiler: torch.profiler.profile | None = None

    def after_step(self, state: TrainState, meter: StepMeter) -> None:
        """See `Hook`. A run that ends early has a shorter breakdown, or a shorter trace, or none, and says so."""
        began = time.perf_counter()
        done = state.step - self.first_step
        ends = state.step >= self.context.end_step or state.stop_reason is not None
        if self.engine.clock.running and (done >= WARMUP_STEPS + CLOCKED_STEPS or ends):
            self._write_breakdown(state.step)
            if not ends:
                self._start_trace()
        elif self._profiler is not None and (done >= WARMUP_STEPS + CLOCKED_STEPS + TRACED_STEPS or ends):
            self._write_trace()
        elif done == WARMUP_STEPS and not ends:
            self._clocked_from = state.step
            self.engine.clock.start("hooks")
            return
        else:
            if ends and done <= WARMUP_STEPS and self.context.rank == 0:
                logger.warning(
                    "--profile measures from step %d of a (re)start, and this run ended after %d: there is no profile.",
                    WARMUP_STEPS + 1,
                    done,
                )
            return
        meter.excluded_s += time.perf_counter() - began

    def _write_breakdown(self, step: int) -> None:
        sections = self.engine.clock.stop()
        num_steps = step - self._clocked_from
        table = torch.zeros(self.context.workers, len(SECTIONS), dtype=torch.float64)
        table[self.context.rank] = torch.tensor([sections[name] / num_steps for name in SECTIONS], dtype=torch.float64)
        table = self.context.all_reduce(table).cpu()
        if self.context.rank or self.tracker is None:
            return
        means = step_seconds(dict(zip(SECTIONS, table.mean(0).tolist(), strict=True)))
        of_workers = [step_seconds(dict(zip(SECTIONS, row, strict=True))) for row in table.tolist()]
        self.tracker.log({"kind": "profile", "step": step, "time_s": time.time(), "num_steps": num_steps, **means})
        self.folder.mkdir(exist_ok=True)
        told = {"first_step": self._clocked_from, "num_steps": num_steps, **means, "of_workers": of_workers}
        write_atomically(self.folder / "breakdown.json", json.dumps(told, indent=1))

    def _start_trace(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self.context.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities)
        self._profiler.start()
        self.engine.clock.trace(True)

    def _write_trace(self) -> None:
        if self._profiler is None:
            return
        self.engine.clock.trace(False)
        self._profiler.stop()
        self.folder.mkdir(exist_ok=True)
        self._profiler.export_chrome_trace(str(self.folder / f"rank-{self.context.rank}.json.gz"))
        self._profiler = None


def step_seconds(sections: dict[str, float]) -> dict[str, float]:
    """`step_s` and its parts `data_wait_s`, ..., `other_s`: seconds to the microsecond, and the parts add up."""
    parts = {f"{name}_s": round(seconds, 6) for name, seconds in sections.items()}
    return {"step_s": round(sum(parts.values()), 6), **parts}
