"""Keeps `genrec train` running on a cluster whatever happens, as a supervisor or a patient person would.

When the command ends with an error, the cause is taken away, the cluster is made whole, and the same command is run
again. Nothing is repaired in the run directory, and nothing is done that a user could not do.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from chaos_cluster import HEAD, ROOT, Cluster
from chaos_faults import Harm, NotNow, Planned, Target
from chaos_machine import Volume
from genrec.run_dir import RunDir

LOOK_EVERY_S = 0.2
STALL_S = 300.0
"""Without a trained step for this long the run counts as hung, and the command is ended. What takes longest is a start
of the command on a busy machine (about 60 s), after the 90 s of `faults.pause_timeout_s`."""
QUIET_S = 10.0
"""Without a trained step for this long a fault of the disk has struck: the run has broken and is being restarted."""
TAIL_BYTES = 8_192


class RunLostError(Exception):
    """The run does not come to its end."""


@dataclass(slots=True)
class Injected:
    """A fault that has come, and what the harness saw and did until the next one."""

    kind: str
    what: str
    intervals: int
    at_step: int
    """Steps done when it came."""
    checkpoint_step: int
    """Where a run that died just before it would have gone on."""
    time_s: float
    lasted_s: float = 0.0
    exits: list[str] = field(default_factory=list)
    """How the command ended, each time that it had to be run again."""
    stalled: bool = False


class SupervisedRun:
    """One run, from an empty run directory to its end."""

    def __init__(
        self, cluster: Cluster, volume: Volume, command: Sequence[str], run: RunDir, log: Path, interval: int
    ) -> None:
        """`command` are the words after `genrec`; what it prints is appended to `log`. A checkpoint comes every
        `interval` steps."""
        self.run = run
        self._interval = interval
        self.faults: list[Injected] = []
        self.num_commands = 0
        self._cluster = cluster
        self._command = list(command)
        self._log = log
        self._target = Target(cluster, volume, run, self._kill_command)
        self._process: subprocess.Popen[bytes] | None = None
        self._harm: tuple[Harm, float] | None = None
        self._last: tuple[int, float] = (0, 0.0)
        self._said_before = 0
        self._moved_at = time.monotonic()

    def carry_out(self, planned: Sequence[Planned], rng: Random, max_s: float) -> None:
        """Runs to the end with the faults on the way. Raises RunLostError when that takes longer than `max_s`."""
        deadline = time.monotonic() + max_s
        try:
            self._start_command()
            for fault in planned:
                while self._done() < fault.step:
                    if self._look(deadline):
                        raise RunLostError(f"The run ended before step {fault.step}, where a fault was to come.")
                time.sleep(fault.delay_s)
                while not self._inject(fault, rng):
                    self._look(deadline)
            while not self._look(deadline):
                pass
        finally:
            self._kill_command()

    def _look(self, deadline: float) -> bool:
        """Looks at the command once and does what is to be done; whether the run has ended as it should."""
        time.sleep(LOOK_EVERY_S)
        if time.monotonic() > deadline:
            raise RunLostError("The run took longer than --max-minutes.")
        if self._harm is not None and self._is_over(*self._harm):
            self._lift()
        assert self._process is not None
        code = self._process.poll()
        if code == 0:
            return True
        if code is not None:
            self._lift()
            self._cluster.start()
            text = f"exit code {code}: {last_words(self._log, self._said_before)}" if code > 0 else f"signal {-code}"
            print(f"  the command ended with {text}; it is run again", flush=True)
            if self.faults:
                self.faults[-1].exits.append(text)
            self._start_command()
            return False
        last = last_step(self.run.metrics_path)
        if last != self._last:
            self._last, self._moved_at = last, time.monotonic()
        elif time.monotonic() - self._moved_at > STALL_S:
            print(f"  nothing has been trained for {STALL_S:.0f} s; the command is ended", flush=True)
            if self.faults:
                self.faults[-1].stalled = True
            self._kill_command()
            self._moved_at = time.monotonic()
        return False

    def _inject(self, fault: Planned, rng: Random) -> bool:
        self._lift()
        step, checkpoint = self._done(), self._target.checkpoint_step()
        time_s = time.time()
        try:
            harm = fault.kind.inject(self._target, rng)
        except NotNow:
            return False
        self._harm = (harm, time.monotonic() + harm.lasts_s)
        self.faults.append(Injected(fault.kind.name, harm.what, fault.kind.intervals, step, checkpoint, time_s))
        print(f"fault {len(self.faults)} at step {step} (checkpoint {checkpoint}): {harm.what}", flush=True)
        return True

    def _is_over(self, harm: Harm, ends_at: float) -> bool:
        if time.monotonic() < ends_at:
            return False
        # The second checkpoint after the fault tells of the first, should that be uploaded in the background.
        wrote_two = self._done() >= self.faults[-1].at_step + 2 * self._interval
        return not harm.until_struck or wrote_two or time.monotonic() - self._moved_at > QUIET_S

    def _lift(self) -> None:
        if self._harm is None:
            return
        harm, _ = self._harm
        self._harm = None
        harm.lift()
        if harm.lasts_s:
            self.faults[-1].lasted_s = round(time.time() - self.faults[-1].time_s, 1)

    def _done(self) -> int:
        return last_step(self.run.metrics_path)[0]

    def _start_command(self) -> None:
        self.num_commands += 1
        self._moved_at = time.monotonic()
        environment = {**self._cluster.environment("command"), "RAY_ADDRESS": self._cluster.address}
        genrec = str(Path(sys.executable).with_name("genrec"))
        with self._log.open("ab") as log:
            self._said_before = log.tell()
            self._process = subprocess.Popen(
                [*self._cluster.network.inside(HEAD), genrec, *self._command],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def _kill_command(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)


def last_step(metrics: Path) -> tuple[int, float]:
    """(step, time) of the last `train` line of a metrics.jsonl that may be growing; (0, 0.0) when there is none."""
    if not metrics.is_file():
        return 0, 0.0
    with metrics.open("rb") as file:
        start = max(0, metrics.stat().st_size - TAIL_BYTES)
        file.seek(start)
        lines = file.read().split(b"\n")
    for line in reversed(lines[1 if start else 0 : -1]):  # the last is empty or still being written
        record = _parse(line)
        if record.get("kind") == "train":
            return record["step"], record["time_s"]
    return 0, 0.0


def _parse(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}  # cut by a full disk; genrec itself removes it at the next start
    return found if isinstance(found, dict) else {}


def last_words(log: Path, start: int) -> str:
    """What a command said last: genrec's own sentence, or else the last line after byte `start` of its log."""
    text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    sentences = [line for line in lines if line.startswith("Error: ")]
    if sentences:
        return sentences[-1][:500]
    return f"no sentence, and last {lines[-1][:200]!r}" if lines else "it said nothing"
