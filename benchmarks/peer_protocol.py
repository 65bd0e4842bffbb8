"""What both sides of a comparison share: the model to build, the log, the split and the stop watch.

Runs in two virtual environments (genrec's and the peer's), so it needs the standard library and numpy alone.
"""

import gzip
import json
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

MIN_LEAVE_ONE_OUT_EVENTS = 3  # one to learn from, one to validate on, one to test on


@dataclass(frozen=True, slots=True)
class PeerModel:
    """One model that both sides build alike. Lengths are input events, a batch is sequences."""

    name: str
    kind: Literal["sasrec", "hstu"]
    loss: Literal["full-softmax", "sampled-softmax"]
    dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    max_length: int = 200
    batch_sequences: int = 128
    num_negatives: int = 256
    dropout: float = 0.2
    lr: float = 1e-3
    seed: int = 1


THROUGHPUT_MODELS = {
    model.name: model
    for model in (
        PeerModel("sasrec-sampled", "sasrec", "sampled-softmax"),
        PeerModel("sasrec-full", "sasrec", "full-softmax"),
        PeerModel("hstu-sampled", "hstu", "sampled-softmax"),
    )
}
"""MovieLens-1M: equal width, depth, heads, length and batch."""


def model_to_json(model: PeerModel) -> str:
    """The model as one command-line argument."""
    return json.dumps(asdict(model))


def model_from_json(text: str) -> PeerModel:
    """The model that `model_to_json` wrote; raises TypeError for a missing or unknown field."""
    return PeerModel(**json.loads(text))


def read_sequences(path: str | Path, layout: Literal["pairs", "lists"]) -> list[Ids]:
    """Each user's items in the file's order, users by first appearance; item ids stay as they are in the file.

    `pairs` is `user item` a line, `lists` is `user item item ...` a line. `.gz` is read as it is.
    """
    opener = gzip.open if str(path).endswith(".gz") else open
    sequences: dict[str, list[int]] = {}
    with opener(path, "rt", encoding="utf-8") as file:
        for line in file:
            user, *items = line.split()
            if layout == "pairs" and len(items) != 1:
                raise ValueError(f"{path}: `user item` expected, got {line.strip()[:60]!r}")
            sequences.setdefault(user, []).extend(map(int, items))
    return [np.array(items, dtype=np.int64) for items in sequences.values()]


def training_parts(sequences: list[Ids]) -> list[Ids]:
    """Each sequence without its last two events; sequences shorter than 3 are kept whole (leave-one-out)."""
    return [items[:-2] if len(items) >= MIN_LEAVE_ONE_OUT_EVENTS else items for items in sequences]


def targets_per_epoch(training: list[Ids], max_length: int) -> int:
    """Real training events of one pass: every event of the last window that has an event before it."""
    return sum(min(max_length, max(0, len(items) - 1)) for items in training)


class SteadyMeter:
    """Events a second between batch ends, after a warm-up, until enough seconds have passed.

    The interval runs from one batch end to the next, so loading, forward, backward, step and epoch borders all count,
    and start-up does not.
    """

    def __init__(
        self,
        warmup_batches: int,
        seconds: float,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self.warmup_batches = warmup_batches
        self.seconds = seconds
        self.clock = clock
        self.cpu_clock = cpu_clock
        self.num_batches = -warmup_batches
        self.num_events = 0
        self.started_s = 0.0
        self.ended_s = 0.0
        self.cpu_started_s = 0.0

    def batch_done(self, num_events: int) -> bool:
        """Counts one finished batch of `num_events` real targets; True once the measurement is complete."""
        self.num_batches += 1
        self.ended_s = self.clock()
        if self.num_batches <= 0:
            self.started_s = self.ended_s
            self.cpu_started_s = self.cpu_clock()
            return False
        self.num_events += num_events
        return self.ended_s - self.started_s >= self.seconds

    def reading(self) -> dict[str, float]:
        """What was measured; raises ValueError when no batch came after the warm-up.

        `cores_used` well under the number of threads says that other processes took the cores.
        """
        if self.num_batches <= 0:
            raise ValueError(f"no batch after a warm-up of {self.warmup_batches}; raise the time-out")
        seconds = self.ended_s - self.started_s
        return {
            "events_per_s": self.num_events / seconds,
            "seconds": seconds,
            "num_batches": self.num_batches,
            "num_events": self.num_events,
            "cores_used": (self.cpu_clock() - self.cpu_started_s) / seconds,
        }


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far (Linux reports KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_measurement(path: str | Path, measurement: dict[str, Any]) -> None:
    """One side's raw measurement, for `peers.py` to read."""
    Path(path).write_text(json.dumps(measurement), encoding="utf-8")
