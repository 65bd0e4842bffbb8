"""Where the time of a step goes, by section. It stands still, and costs next to nothing, until somebody starts it.

The loop and the engine say with `switch` what begins; so the sections follow each other without a gap, and add up to
the time between `start` and `stop`. On a GPU the borders are events in its stream: nothing waits for them, and what is
measured is when the GPU passed them. Communication that runs beside the backward pass there is not on the way, and
counts as backward.
"""

import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

SECTIONS = ("data_wait", "to_device", "forward", "backward", "communication", "optimizer", "hooks", "other")

COLLECTIVES = (
    "all_gather",
    "all_gather_base",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_reduce",
    "all_reduce_coalesced",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
)


class StepClock:
    """One for each engine: seconds by section, and on request the sections as ranges of a torch.profiler trace."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.running = False
        self.tracing = False
        self._section = "other"
        self._seconds = dict.fromkeys(SECTIONS, 0.0)
        self._started_at = self._at = 0.0
        self._borders: list[tuple[torch.cuda.Event, str]] = []
        self._stream: torch.cuda.Stream | None = None
        self._range: Any = None
        self._thread = 0

    def start(self, section: str = "other") -> None:
        """Measures from now on; the time until the first `switch` belongs to `section`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self._stream = torch.cuda.current_stream(self.device)
        self._seconds = dict.fromkeys(SECTIONS, 0.0)
        self._borders = []
        self._section = section
        self._started_at = self._at = time.perf_counter()
        self.running = True
        self._mark()

    def switch(self, section: str) -> str:
        """The time from now on belongs to `section`; returns the section that it belonged to until now."""
        before = self._section
        if self.running:
            self._mark()
            self._section = section
        elif self.tracing and threading.get_ident() == self._thread:
            self._end_range()
            self._section = section
            self._range = torch.profiler.record_function(f"genrec.{section}")
            self._range.__enter__()
        return before

    def stop(self) -> dict[str, float]:
        """Stops, and returns the seconds of every section since `start`; they add up to the time between the two."""
        self._mark()
        self.running = False
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            for (event, section), (after, _) in zip(self._borders, self._borders[1:], strict=False):
                self._seconds[section] += event.elapsed_time(after) / 1_000
            self._borders = []
            self._seconds["other"] += time.perf_counter() - self._started_at - sum(self._seconds.values())
        return self._seconds

    def trace(self, on: bool) -> None:
        """Makes every section a range of the trace that is being recorded, or no longer."""
        self._end_range()
        self.tracing, self._thread = on, threading.get_ident()

    def _end_range(self) -> None:
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None

    def _mark(self) -> None:
        """Books the time since the last border; on a GPU, puts one into its stream."""
        if self._stream is not None:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(self._stream)
            if self._borders:
                self._borders[-1] = (self._borders[-1][0], self._section)
            self._borders.append((event, self._section))
            return
        now = time.perf_counter()
        self._seconds[self._section] += now - self._at
        self._at = now


def time_collectives(backend: Any, clock: StepClock) -> None:
    """Lets `clock` count the collectives of `backend`, an object whose methods they are, as communication.

    What is started asynchronously is counted while it is started and while it is waited for. A backend serves one clock
    at a time, the last that was given.
    """
    if not hasattr(backend, "step_clock"):
        for name in COLLECTIVES:
            method = getattr(backend, name, None)
            if method is not None:
                setattr(backend, name, _timed(method, backend))
    backend.step_clock = clock


class _TimedWork:
    """A collective that was started; waiting for it is communication."""

    def __init__(self, work: Any, backend: Any) -> None:
        self._work = work
        self._backend = backend

    def wait(self, *arguments: Any) -> Any:
        return _timed(self._work.wait, self._backend)(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def _timed(function: Callable[..., Any], backend: Any) -> Callable[..., Any]:
    @wraps(function)
    def timed(*arguments: Any, **named: Any) -> Any:
        clock: StepClock = backend.step_clock
        if not (clock.running or clock.tracing):
            return function(*arguments, **named)
        before = clock.switch("communication")
        try:
            result = function(*arguments, **named)
        finally:
            clock.switch(before)
        return _TimedWork(result, backend) if hasattr(result, "wait") else result

    return timed
