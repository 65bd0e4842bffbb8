"""One trial: a Ray Tune function that trains an ordinary run and tells Tune of every validation.

It runs in a process of its own without CPUs. The run's metrics.jsonl says how far it is; so nothing inside the training
knows of Tune, and a trial that starts again tells Tune everything that it has already reached.
"""

import json
import logging
import os
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genrec.config import ExperimentConfig
from genrec.errors import ConfigError, GenrecError, ProtocolError, StorageError
from genrec.run_dir import RunDir, log_to, run_dir_at
from genrec.tuning.records import Progress, SweepDir, read_progress, write_progress
from genrec.tuning.results import follow, problem_with
from genrec.tuning.space import Params

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""Between two looks at the run's metrics."""

ROOM_LOOK_S = 2.0
"""Between two looks at the machines while a trial has no room."""

POINTER_FILE = "trial.json"
"""In Tune's checkpoint of a trial: where the real one is."""


@dataclass(frozen=True, slots=True)
class TrialJob:
    """What all trials of a sweep are told; plain values, so that it pickles without importing anything heavy."""

    sweep_root: str
    base: dict[str, Any]
    metrics: tuple[str, ...]
    events_per_epoch: int
    hands_over: bool
    """Whether trials may take over each other's checkpoints."""
    environment: dict[str, str] = field(default_factory=dict)
    """Settings of the command's process that trials need too: keys of the tracker, folders."""

    @property
    def folder(self) -> SweepDir:
        """The sweep's folder."""
        return SweepDir(Path(self.sweep_root))


def run_trial(tune_config: dict[str, Any], job: TrialJob) -> None:
    """Tune's trainable. `tune_config["job"]` has the trial, its settings and its size."""
    from ray import tune

    from genrec.tuning.admission import trial_config

    os.environ.update(job.environment)
    asked = tune_config["job"]
    trial = tune.get_context().get_trial_name()
    account = Account(job.folder.progress_path(trial), asked["num_parameters"], job.events_per_epoch)
    try:
        account.begin()
        free_reservations(job.folder, trial)
        if job.hands_over:
            _take_over(job, trial, asked, account)
        progress = account.progress
        params: Params = asked["params"] if progress.params is None else progress.params
        config = trial_config(job.folder, job.base, int(trial), params, progress.life)
        _wait_for_room(config)
        account.workers = config.cluster.max_workers
        _train(config, job, account)
    finally:
        account.write()


def _wait_for_room(config: ExperimentConfig) -> None:
    """Waits until the machines hold the trial. They did when it was admitted; the command ends it if they do not again.

    Without it a trial that starts again while a machine is away would count as a mistake, and be lost. With
    `placement.wait_s` the run asks for machines and waits itself.
    """
    from genrec.cluster.resources import alive_machines
    from genrec.cluster.room import check_room

    said = False
    while not config.placement.wait_s:
        try:
            check_room(config, alive_machines())
            return
        except ConfigError as error:
            if not said:
                logger.warning("Waiting for machines. %s", error)
                said = True
        time.sleep(ROOM_LOOK_S)


def free_reservations(folder: SweepDir, trial: str) -> None:
    """Frees what the workers of a trial, whose process is gone, still hold: those of any of its runs.

    Ray Train does so itself where the cluster has a dashboard to ask, and its helper outlives the trial.
    """
    from genrec.cluster.reservation import free_reservation

    for pattern in (trial, f"{trial}-*"):
        for path in folder.trials_path.glob(pattern):
            free_reservation(run_dir_at(path))


class Account:
    """Keeps a trial's progress file: what it has cost so far, and how far it is."""

    def __init__(self, path: Path, num_parameters: int | None, events_per_epoch: int) -> None:
        self.path = path
        self.num_parameters = num_parameters
        self.events_per_epoch = events_per_epoch
        self.workers = 1
        self.progress = read_progress(path)
        self._before = (self.progress.seconds, self.progress.worker_seconds)
        self._began_s = time.time()

    def begin(self) -> None:
        """Counts one more start."""
        self.progress.attempts += 1
        self.progress.outcome, self.progress.error = None, None
        self.progress.spans.append((self._began_s, self._began_s))
        self.write()

    def follow(self, run: RunDir) -> None:
        """Looks how far the run is, and writes it down."""
        follow(self.progress, run, self.num_parameters, self.events_per_epoch)
        self.write()

    def end(self, error: str | None) -> None:
        """Writes down how the trial ended; an error here is one that trying again cannot mend."""
        self.progress.outcome = "finished" if error is None else "failed"
        self.progress.error = error
        self.write()

    def write(self) -> None:
        """Writes the account with its costs up to now."""
        now = time.time()
        passed = now - self._began_s
        self.progress.seconds = self._before[0] + passed
        self.progress.worker_seconds = self._before[1] + passed * self.workers
        self.progress.spans[-1] = (self._began_s, now)
        write_progress(self.path, self.progress)


def _train(config: ExperimentConfig, job: TrialJob, account: Account) -> None:
    """Trains the run in a thread, and reports from this one, which Tune ends when the scheduler stops the trial."""
    from genrec.cluster.ray_train import fit
    from genrec.training.start import open_run_directory

    run = open_run_directory(config, fresh=False, say=logger.info)
    log_to(run.log_path)
    failed: list[Exception] = []

    def train() -> None:
        try:
            fit(config, run, time.time())
        except Exception as error:  # handed to the thread that Tune listens to
            failed.append(error)

    thread = threading.Thread(target=train, name="fit", daemon=True)
    thread.start()
    num_told = 0
    while True:
        alive, looked_s = thread.is_alive(), time.perf_counter()
        account.follow(run)
        num_told = _tell(job, account, run, num_told)
        if account.progress.outcome is not None:
            return  # Tune ends this process, and with it the workers
        if not alive:
            break
        # A long metrics.jsonl takes long to read: looking stays a twentieth of the time.
        thread.join(max(POLL_S, 20 * (time.perf_counter() - looked_s)))
    if failed:
        _end_failed(failed[0], account)
        return
    problem = problem_with(account.progress.history, job.metrics)
    if not account.progress.history:
        problem = f"The trial ended without a validation, so {job.metrics[0]} was never reported; train longer."
    account.end(problem)


def _tell(job: TrialJob, account: Account, run: RunDir, num_told: int) -> int:
    """Reports the validations that Tune does not know yet; a value that is no number ends the trial."""
    from ray import tune

    history = account.progress.history
    if job.hands_over and num_told == 0:
        num_told = max(0, len(history) - 1)  # only where it stands now: old results would make it take over again
    for number in range(num_told, len(history)):
        problem = problem_with(history[: number + 1], job.metrics)
        if problem is not None:
            account.end(problem)
            break
        if not job.hands_over:
            tune.report(history[number])
            continue
        with tempfile.TemporaryDirectory() as pointer:
            where = {"run": str(run.root), "step": int(history[number]["step"])}
            (Path(pointer) / POINTER_FILE).write_text(json.dumps(where), encoding="utf-8")
            tune.report(history[number], checkpoint=tune.Checkpoint.from_directory(pointer))
    return len(history)


def _end_failed(error: Exception, account: Account) -> None:
    """A mistake ends the trial for good; anything else is Tune's to try again, within `budget.retries`."""
    from genrec.cluster.mistakes import FAILURE_FILE

    account.progress.error = " ".join(str(error).split()) or type(error).__name__
    run_failure = any(account.path.parent.parent.glob(f"trials/{account.path.stem}*/{FAILURE_FILE}"))
    hopeless = isinstance(error, ConfigError | ProtocolError) or (
        isinstance(error, GenrecError) and run_failure and not isinstance(error, StorageError)
    )
    if hopeless:
        account.end(account.progress.error)
        return
    account.write()
    raise error


def _take_over(job: TrialJob, trial: str, asked: dict[str, Any], account: Account) -> None:
    """Where population-based training has given this trial another's checkpoint, begins a new run with it."""
    from ray import tune

    from genrec.tuning.admission import trial_config
    from genrec.tuning.handoff import hand_over

    given = tune.get_checkpoint()
    if given is None:
        return
    with given.as_directory() as pointer:
        where = json.loads((Path(pointer) / POINTER_FILE).read_text(encoding="utf-8"))
    donor, step = Path(where["run"]), int(where["step"])
    progress: Progress = account.progress
    if donor.name.partition("-")[0] == trial:
        return  # its own: it was paused, and goes on from its own checkpoints
    last = account.progress.took_over[-1] if account.progress.took_over else {}
    if (last.get("from"), last.get("step"), last.get("params")) == (donor.name, step, asked["params"]):
        return  # taken over already: it was started again, and goes on from there
    life = progress.life + 1
    hand_over(donor, step, trial_config(job.folder, job.base, int(trial), asked["params"], life))
    progress.life, progress.params, progress.events_before = life, asked["params"], progress.events
    progress.took_over.append({"from": donor.name, "step": step, "params": asked["params"], "time_s": time.time()})
    account.write()
