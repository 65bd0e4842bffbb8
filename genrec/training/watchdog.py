"""Ends a worker that stands still, with the stacks of all its threads in the run directory.

A collective waits for its slowest worker, so when one stops, all stop, and each sees it from inside: no micro-batch has
been finished for `faults.step_timeout_s`. Each then writes `stacks/rank_00000.txt` and ends its process with
`EXIT_CODE`, and the launcher starts the workers again from the last checkpoint. A worker that is itself stopped
(SIGSTOP) cannot do so; the others do, and the launcher kills it with its group.

The limit is watched twice: by a thread of Python, which writes a sentence to the stacks, and, should a stuck call keep
Python's lock so that no thread runs, by `faulthandler`'s own timer, which needs no lock.
"""

import faulthandler
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, TypeVar

from genrec.config import FaultsConfig
from genrec.run_dir import RunDir

if TYPE_CHECKING:
    from genrec.training.loop import Hook
    from genrec.training.meters import StepMeter
    from genrec.training.state import TrainState

T = TypeVar("T")

EXIT_CODE = 75
"""EX_TEMPFAIL: trying again may help."""

GRACE_S = 2.0
"""Between writing the stacks and ending, so that no worker is ended by the others' end before it has written its own.
"""


class Watchdog:
    """Watches one worker inside `running`; `beat` says that it has moved. Without a time-out it watches nothing."""

    def __init__(self, run: RunDir, rank: int, faults: FaultsConfig) -> None:
        self.path = run.root / "stacks" / f"rank_{rank:05d}.txt"
        self._rank = rank
        self._step_timeout_s = faults.step_timeout_s or math.inf
        self._pause_timeout_s = max(faults.pause_timeout_s, self._step_timeout_s)
        self._limit_s = self._pause_timeout_s
        self._moved_at = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watches while it lasts, with the long limit until the first beat; leaves no file when nothing happened."""
        if math.isinf(self._step_timeout_s):
            yield
            return
        self._limit_s, self._moved_at = self._pause_timeout_s, time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        closed = threading.Event()
        with self.path.open("a", encoding="utf-8") as file:
            thread = threading.Thread(target=self._watch, args=(file, closed), name="watchdog", daemon=True)
            thread.start()
            try:
                yield
            finally:
                closed.set()
                thread.join()
                faulthandler.cancel_dump_traceback_later()
                if not self.path.stat().st_size:
                    self.path.unlink()

    def beat(self) -> None:
        """Says that a micro-batch is done; from now on the limit of a step holds."""
        self._moved_at = time.monotonic()
        self._limit_s = self._step_timeout_s

    def watch(self, items: Iterator[T]) -> Iterator[T]:
        """The same items; taking the next one means that the one before it is done."""
        for item in items:
            self.beat()
            yield item
            self.beat()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While it lasts, the long limit holds."""
        self._limit_s, self._moved_at = self._pause_timeout_s, time.monotonic()
        try:
            yield
        finally:
            self.beat()

    def pausing(self, hook: "Hook") -> "Hook":
        """The same hook with the long limit: for validations and checkpoints."""
        return _PausingHook(hook, self)

    def _watch(self, file: TextIO, closed: threading.Event) -> None:
        interval_s = min(self._step_timeout_s / 8, 5.0)
        while not closed.wait(interval_s):
            left_s = self._moved_at + self._limit_s - time.monotonic()
            if left_s <= 0:
                self._end(file)
            # Fires only when this loop cannot run any more.
            faulthandler.dump_traceback_later(left_s + 2 * interval_s + GRACE_S, exit=True, file=file)

    def _end(self, file: TextIO) -> None:
        faulthandler.cancel_dump_traceback_later()
        now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        file.write(
            f"{now} UTC, worker {self._rank}, process {os.getpid()}: nothing has moved for {self._limit_s:g} s, so the "
            "process ends. All its threads, the newest call first:\n"
        )
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
        file.flush()
        os.fsync(file.fileno())
        time.sleep(GRACE_S)
        os._exit(EXIT_CODE)


class _PausingHook:
    def __init__(self, hook: "Hook", watchdog: Watchdog) -> None:
        self.hook = hook
        self.watchdog = watchdog

    def after_step(self, state: "TrainState", meter: "StepMeter") -> None:
        """See `Hook`."""
        with self.watchdog.paused():
            self.hook.after_step(state, meter)
