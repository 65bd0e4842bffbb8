"""Keeps the books of a sweep: which trial comes next, what became of each, what they cost, and when the budget ends.

There is no Ray here. `ray_sweep.py` asks for the next trial and tells what happened; everything is in files, so a
killed command goes on from them.
"""

import time
from collections.abc import Callable, Sequence

from genrec.errors import ConfigError, DataError, GenrecError, RunError, StorageError
from genrec.tuning.admission import Gate, reason_of
from genrec.tuning.config import SweepConfig
from genrec.tuning.proposals import Outcome, Proposer
from genrec.tuning.records import DONE, Sweep, SweepDir, Trial, read_progress, write_sweep
from genrec.tuning.results import take_results, values_of

MAX_REJECTED = 200
"""Proposals that may be rejected before the first that can run: then the space holds none."""


NO_ROOM_S = 600.0
"""How long the machines may have room for no running trial before the sweep ends; `placement.wait_s` if that is more.
Ray Train asks for workers again and again, so without an end the trials would wait for machines that never come."""

INTERRUPTED = "the command was interrupted"


class Director:
    """One sweep under way."""

    def __init__(
        self,
        folder: SweepDir,
        spec: SweepConfig,
        sweep: Sweep,
        gate: Gate,
        proposer: Proposer,
        groups: Sequence[str] | None = None,
    ) -> None:
        self.folder = folder
        self.spec = spec
        self.sweep = sweep
        self.gate = gate
        self.proposer = proposer
        self.groups = groups
        """In a retraining: the group of each trial."""
        self.on_change: Callable[[Trial], None] = lambda _: None
        """Called when a trial's state has changed."""
        self._learned: set[int] = set()
        self._exhausted = False
        self._budget_said: str | None = None
        self._starved: str | None = None
        self._without_room_since: float | None = None

    def open(self) -> None:
        """Begins a start of the command: trials that were under way wait again, unless they have ended since."""
        self.sweep.state, self.sweep.reason = "running", None
        now = time.time()
        self.sweep.spans.append([now, now])
        for trial in self.sweep.trials:
            if trial.state in ("waiting", "running", "cut") or self._may_retry(trial):
                trial.progress = read_progress(self.folder.progress_path(trial.id))
                if trial.progress.outcome is not None:
                    self._settle(trial, None)
                elif self.spec.budget.trials is not None and trial.number >= self.spec.budget.trials:
                    trial.state, trial.reason = "cut", f"budget.trials ({self.spec.budget.trials}) is used up"
                else:
                    trial.state, trial.reason = "waiting", None
            self._price(trial)
            self._learn(trial)
        self.save()

    def _may_retry(self, trial: Trial) -> bool:
        """Whether a trial has failed for want of retries that the budget has now."""
        return (
            trial.state == "failed"
            and trial.progress.outcome is None
            and 0 < trial.progress.attempts <= self.spec.budget.retries
        )

    def next_trial(self) -> Trial | None:
        """The next trial to start: one that waits, or a new one; None when there are no more, or no budget."""
        if self.must_end() is not None:
            return None
        for trial in self.sweep.trials:
            if trial.state == "waiting":
                return self._started(trial)
        while not self._exhausted:
            number = len(self.sweep.trials)
            params = self.proposer.propose(number, [trial.params for trial in self.sweep.trials])
            rejected = sum(trial.state == "rejected" for trial in self.sweep.trials)
            if params is None or number == rejected >= MAX_REJECTED:
                self._exhausted = True
                break
            trial = Trial(number, params, group=None if self.groups is None else self.groups[number])
            self.sweep.trials.append(trial)
            try:
                admitted = self.gate.admit(number, params)
            except StorageError as error:  # no fault of the trial's settings: the next start asks again
                self.sweep.trials.pop()
                self._starved = reason_of(error)
                break
            except (ConfigError, DataError, RunError) as error:  # RunError: placement.wait_s is over
                trial.state, trial.reason = "rejected", reason_of(error)
                self._learn(trial)
                self.on_change(trial)
                continue
            trial.num_parameters = admitted.num_parameters
            trial.workers = admitted.config.cluster.max_workers
            return self._started(trial)
        self.save()
        return None

    def all_trials(self) -> list[Trial]:
        """Every trial that still has to run, all at once: a population."""
        found = []
        while (trial := self.next_trial()) is not None:
            found.append(trial)
        return found

    def ended(self, trial: Trial, error: str | None = None) -> None:
        """Takes in that a trial is done; `error` is what Ray Tune says of one that has failed."""
        trial.progress = read_progress(self.folder.progress_path(trial.id))
        self._settle(trial, error)
        self._learn(trial)
        self._find_best()
        self.save()
        self.on_change(trial)

    def look(self) -> None:
        """Reads how far the running trials are."""
        for trial in self.running():
            trial.progress = read_progress(self.folder.progress_path(trial.id))
            self._judge(trial)
        self.save()

    def running(self) -> list[Trial]:
        """The trials that have been started and have not ended."""
        return [trial for trial in self.sweep.trials if trial.state == "running"]

    def take_room(self, problem: str | None, patience_s: float = NO_ROOM_S) -> None:
        """Takes in why the machines have room for none of the running trials; None when they have for one.

        When it stays so for `patience_s`, `must_end` says it, and the next start goes on with the trials.
        """
        now = time.monotonic()
        if problem is None:
            self._without_room_since = None
        elif self._without_room_since is None:
            self._without_room_since = now
        elif now - self._without_room_since >= patience_s:
            minutes = (now - self._without_room_since) / 60
            self._starved = f"The cluster has had no room for any trial for {minutes:.0f} minutes: {problem}"

    def must_end(self) -> str | None:
        """Why no trial may run any longer: a budget, or the machines; None while they may."""
        return self._starved or self.over_budget()

    def over_budget(self) -> str | None:
        """Which budget is used up, in words; None while there is some left."""
        budget, now = self.spec.budget, time.time()
        seconds = sum(end - begin for begin, end in self.sweep.spans[:-1]) + now - self.sweep.spans[-1][0]
        if budget.hours is not None and seconds >= budget.hours * 3_600:
            self._budget_said = f"budget.hours ({budget.hours:g}) is used up"
        elif budget.worker_hours is not None and self.sweep.worker_seconds >= budget.worker_hours * 3_600:
            self._budget_said = f"budget.worker_hours ({budget.worker_hours:g}) is used up"
        return self._budget_said

    def close(self) -> None:
        """Ends a start of the command: what still runs has been cut off."""
        ended_early = False
        for trial in self.sweep.trials:
            if trial.state in ("waiting", "running"):
                trial.progress = read_progress(self.folder.progress_path(trial.id))
                if trial.progress.outcome is not None:
                    self._settle(trial, None)
                else:
                    trial.state, trial.reason = "cut", self._starved or self._budget_said or INTERRUPTED
                    self._judge(trial)
                    ended_early = True
        self._find_best()
        # Nobody asked for the next trial until there was none: the command was told to end.
        interrupted = self._starved is not None or (self._budget_said is None and (ended_early or not self._exhausted))
        cut = any(trial.state == "cut" for trial in self.sweep.trials)
        self.sweep.state = "interrupted" if interrupted else "out of budget" if cut or self._budget_said else "finished"
        self.sweep.reason = self._starved or INTERRUPTED if interrupted else self._budget_said
        self.save()

    def outcomes(self) -> list[Outcome]:
        """Settings and values of the trials that have some."""
        pairs = [(trial, values_of(trial, self.spec.metrics)) for trial in self.sweep.trials]
        return [Outcome(trial.settings, values) for trial, values in pairs if values is not None]

    def save(self) -> None:
        """Writes sweep.json."""
        if self.sweep.spans:
            self.sweep.spans[-1][1] = time.time()
        write_sweep(self.folder, self.sweep)

    def _started(self, trial: Trial) -> Trial:
        trial.state = "running"
        self.save()
        self.on_change(trial)
        return trial

    def _settle(self, trial: Trial, error: str | None) -> None:
        progress = trial.progress
        if progress.outcome == "finished":
            trial.state, trial.reason = "finished", None
        elif progress.outcome == "failed" or error is not None:
            trial.state, trial.reason = "failed", progress.error or error
        else:
            trial.state = "stopped"
            trial.reason = f"by {self.spec.scheduler.name} after {progress.epoch:.3g} epochs"
        self._judge(trial)

    def _judge(self, trial: Trial) -> None:
        run = self.folder.run_path(trial.id, trial.progress.life)
        take_results(trial, run, self.spec.metrics[0], self.spec.modes[0])
        self._price(trial)

    def _price(self, trial: Trial) -> None:
        price = self.spec.budget.price_per_worker_hour
        trial.price = None if price is None else price * trial.progress.worker_seconds / 3_600

    def _learn(self, trial: Trial) -> None:
        if trial.state not in DONE or trial.number in self._learned:
            return
        self._learned.add(trial.number)
        values = None if trial.state in ("failed", "rejected") else values_of(trial, self.spec.metrics)
        self.proposer.learn(trial.number, Outcome(trial.settings, values))

    def _find_best(self) -> None:
        ranked = ranking(self.sweep.trials, self.spec.metrics[0], self.spec.modes[0])
        self.sweep.best = ranked[0].number if ranked else None


def ranking(trials: Sequence[Trial], metric: str, mode: str) -> list[Trial]:
    """The trials that have a value, the best first; failed ones do not count."""
    sign = 1 if mode == "max" else -1
    known = [
        (-sign * trial.best[metric], trial.number, trial)
        for trial in trials
        if trial.best is not None and trial.state not in ("failed", "rejected")
    ]
    return [trial for _, _, trial in sorted(known, key=lambda entry: entry[:2])]


def describe_failure(error: BaseException) -> str:
    """The last line of an error, for a table."""
    if isinstance(error, GenrecError):
        return reason_of(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
