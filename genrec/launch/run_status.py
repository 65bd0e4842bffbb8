"""The state of a run, live or ended, read from its folder alone: no process is asked, so it works from any machine."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from genrec.cluster.mistakes import FAILURE_FILE, message_of
from genrec.errors import StorageError
from genrec.reporting import formats
from genrec.reporting.history import read_history
from genrec.run_dir import RunDir, open_run, read_metrics
from genrec.training.checkpoint import latest_checkpoint
from genrec.training.checkpoint_store import store_of
from genrec.training.tracking import WANDB_FILE

QUIET_S = 120.0
QUIET_LINES = 10.0
QUIET_LINES_READ = 20
"""A run whose last line is older than both, seconds and distances of its last lines, is not called running any more."""

State = Literal["starting", "running", "silent", "finished", "failed"]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What is known of a run. Seconds, steps and events per second; None where there is nothing to tell yet."""

    run: str
    state: State
    step: int
    end_step: int | None
    epoch: float | None
    loss: float | None
    events_per_s: float | None
    eta_s: float | None
    last_line_age_s: float | None
    last_checkpoint: int | None
    checkpoint_problem: str | None
    last_validation: dict[str, Any] | None
    best_validation: dict[str, Any] | None
    metric: str
    starts: int
    resumed: int
    repeated_steps: int
    workers: int | None
    failure: str | None
    wandb: str | None


def run_status(folder: Path, now_s: float | None = None) -> RunStatus:
    """The state of the run in `folder` at `now_s` (Unix seconds; None is now); raises DataError when it is no run."""
    run, config = open_run(folder)
    now = time.time() if now_s is None else now_s
    history = read_history(run.metrics_path)
    records = read_metrics(run.metrics_path)
    train = [record for record in records if record.get("kind") == "train"]
    starts = [record for record in records if record.get("kind") == "start"]
    last = train[-1] if train else {}
    failure = run.root / FAILURE_FILE
    age = None if math.isnan(history.last_time_s) else max(now - history.last_time_s, 0.0)
    checkpoint, problem = _last_checkpoint(run, config)
    state = _state(run, records, age, failed=failure.is_file())
    metric = config.evaluation.metric
    best = history.best_validation(metric)
    validations = history.validations

    def told(validation: Any) -> dict[str, Any] | None:
        if validation is None:
            return None
        return {"step": validation.step, "epoch": validation.epoch, metric: validation.metrics.get(metric)}

    return RunStatus(
        run=str(run.root),
        state=state,
        step=history.last_step,
        end_step=starts[-1].get("end_step") if starts else None,
        epoch=last.get("epoch"),
        loss=last.get("loss"),
        events_per_s=last.get("events_per_s"),
        eta_s=max(last["eta_s"] - (age or 0.0), 0.0) if state == "running" and "eta_s" in last else None,
        last_line_age_s=age,
        last_checkpoint=checkpoint,
        checkpoint_problem=problem,
        last_validation=told(validations[-1] if validations else None),
        best_validation=told(best),
        metric=metric,
        starts=len(history.starts),
        resumed=len(history.restart_steps),
        repeated_steps=sum(start.num_repeated_steps for start in history.starts),
        workers=history.starts[-1].workers if history.starts else None,
        failure=message_of(failure) if failure.is_file() else None,
        wandb=_wandb(run),
    )


def _state(run: RunDir, records: list[dict[str, Any]], age: float | None, *, failed: bool) -> State:
    if failed:
        return "failed"
    starts = [record["time_s"] for record in records if record.get("kind") == "start"]
    if run.evaluation_path.is_file() and (not starts or run.evaluation_path.stat().st_mtime >= starts[-1]):
        return "finished"
    if age is None:
        return "starting" if time.time() - run.config_path.stat().st_mtime < QUIET_S else "silent"
    times = [record["time_s"] for record in records if record.get("kind") == "train"][-QUIET_LINES_READ:]
    usual = max((later - earlier for earlier, later in pairwise(times)), default=0.0)
    return "running" if age < max(QUIET_S, QUIET_LINES * usual) else "silent"


def _last_checkpoint(run: RunDir, config: Any) -> tuple[int | None, str | None]:
    try:
        name = latest_checkpoint(store_of(config, run))
    except StorageError as error:
        return None, str(error)
    return (None if name is None else int(name.removeprefix("step_"))), None


def _wandb(run: RunDir) -> str | None:
    path = run.root / WANDB_FILE
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return told["url"] or f"offline; `wandb sync {run.root}/wandb/*run*-{told['id']}` uploads it"
    except (ValueError, KeyError, TypeError):
        return f"{path} is damaged; the next start of the run writes it again"


def status_lines(status: RunStatus) -> Iterator[tuple[str, str]]:
    """(name, text) of what a person wants to know, unknown things left out."""
    age = formats.seconds(status.last_line_age_s)
    told = {
        "starting": "starting: nothing is trained yet",
        "running": f"running, last line {age} ago",
        "silent": f"no line for {age}: it has ended or stands still; the same command goes on from its last checkpoint",
        "finished": "finished",
        "failed": f"failed: {status.failure}",
    }
    if status.last_line_age_s is None and status.state == "silent":
        yield "State", "nothing was ever trained; run the command again"
    else:
        yield "State", told[status.state]
    end = "" if status.end_step is None else f" of {status.end_step:,}"
    epoch = "" if status.epoch is None else f", epoch {formats.number(status.epoch)}"
    yield "Step", f"{status.step:,}{end}{epoch}"
    if status.loss is not None:
        yield "Loss", formats.number(status.loss)
    if status.events_per_s is not None:
        yield "Speed", f"{status.events_per_s:,.0f} events/s on {status.workers} workers"
    if status.eta_s is not None:
        yield "Left", formats.seconds(status.eta_s)
    for name, validation in (("Validation", status.last_validation), ("Best", status.best_validation)):
        if validation is not None:
            value = formats.metric(validation[status.metric])
            yield name, f"{formats.metric_name(status.metric)} {value} at step {validation['step']:,}"
    if status.checkpoint_problem is not None:
        yield "Checkpoint", status.checkpoint_problem
    else:
        none = "none that counts"
        yield "Checkpoint", none if status.last_checkpoint is None else f"step {status.last_checkpoint:,}"
    yield "Starts", f"{status.starts}, {status.resumed} of them resumed; {status.repeated_steps:,} steps trained again"
    if status.wandb is not None:
        yield "W&B", status.wandb
