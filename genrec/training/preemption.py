"""Pre-emption: a worker is told to leave, all agree at the next step boundary, save a checkpoint and end.

A notice comes from a signal (SIGTERM, Ctrl-C), which may reach one worker alone, or from the cluster. Notices are
summed over the workers in every step (step_guard.py), and `PreemptionHook` in hooks.py then saves the checkpoint.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType

ASK_EVERY_S = 5.0
"""How often the cluster is asked; the answer costs a round trip of all workers."""


class Notice:
    """Whether this worker has been told to leave. One for each process, because signals are."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._listening = False
        self._ask: Callable[[], bool] | None = None
        self._asked_at = time.monotonic()

    @property
    def given(self) -> bool:
        """Whether a signal has come since training began."""
        return self.signal_number is not None

    @contextmanager
    def listening(self, ask: Callable[[], bool] | None = None) -> Iterator[None]:
        """While it lasts, signals are taken as notices; `ask` asks the cluster, by all workers together."""
        self.signal_number, self._listening, self._ask = None, True, ask
        try:
            yield
        finally:
            self._listening, self._ask = False, None

    def take(self, signal_number: int) -> bool:
        """Takes a signal as a notice; False where the process should end at once: not training, or told before."""
        if not self._listening or self.given:
            return False
        self.signal_number = signal_number
        return True

    def ask_is_due(self) -> bool:
        """Whether it is time to ask the cluster again; for one worker to decide, and all to follow."""
        return self._ask is not None and time.monotonic() - self._asked_at >= ASK_EVERY_S

    def ask_cluster(self) -> bool:
        """The cluster's answer; all workers ask together."""
        self._asked_at = time.monotonic()
        return self._ask is not None and self._ask()


@cache
def notice_of_process() -> Notice:
    """The notice that this process's signals are written to."""
    return Notice()


@contextmanager
def signals_as_notices() -> Iterator[None]:
    """While it lasts, SIGTERM and Ctrl-C are notices first; a second one, or one outside training, ends the process.

    Does nothing outside the main thread, where Python hands out no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_signal(number: int, _: FrameType | None) -> None:
    if notice_of_process().take(number):
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
