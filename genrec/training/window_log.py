"""Writes down which windows each step was trained on (`tracking.log_windows`), so a run can prove what it has seen.

    RUN/windows/rank_00000.jsonl    {"time_s": 1760000000.1, "step": 7, "part": 0, "parts": 2, "epoch": 0,
                                     "users": [3, 12, ...], "starts": [0, 40, ...]}

A line is one micro-batch, written when its step is done and before that step's checkpoint, so what a checkpoint counts
is on disk. A step that a restart trains again is written again, perhaps by another rank, perhaps in another number of
parts: the later lines count.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from genrec.data.batch import Batch
from genrec.data.stream import Place
from genrec.run_dir import RunDir
from genrec.training.meters import StepMeter
from genrec.training.state import TrainState

WINDOWS_DIR = "windows"


class WindowLogHook:
    """Appends the windows of each step of this worker to its file; `watch` must see the micro-batches."""

    def __init__(self, run: RunDir, rank: int, parts: int) -> None:
        self._parts = parts
        self._path = _folder(run) / f"rank_{rank:05d}.jsonl"
        self._path.parent.mkdir(exist_ok=True)
        if _is_torn(self._path):
            self._append("\n")  # what a kill cut stays there and does not count
        self._pending: list[dict[str, Any]] = []

    def watch(self, batches: Iterable[tuple[Place, Batch]]) -> Iterator[tuple[Place, Batch]]:
        """The same micro-batches; their windows are kept until their step is done."""
        for place, batch in batches:
            assert batch.micro_batch_id is not None and batch.users is not None and batch.starts is not None
            self._pending.append(
                {
                    "step": place.step,
                    "part": place.part,
                    "parts": self._parts,
                    "epoch": batch.micro_batch_id.epoch,
                    "users": batch.users.tolist(),
                    "starts": batch.starts.tolist(),
                }
            )
            yield place, batch

    def after_step(self, state: TrainState, meter: StepMeter) -> None:
        """See `Hook`."""
        lines = [json.dumps({"time_s": time.time(), **line}) + "\n" for line in self._pending]
        self._append("".join(lines))
        self._pending.clear()

    def _append(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)


def trained_windows(run: RunDir) -> list[dict[str, Any]]:
    """The micro-batches that count, by step and part: of a step that was trained several times, the last."""
    latest: dict[tuple[int, int], dict[str, Any]] = {}
    last_of_step: dict[int, dict[str, Any]] = {}
    for path in sorted(_folder(run).glob("rank_*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue  # cut by a kill; its step was not in a checkpoint, so it was trained again
            key = (line["step"], line["part"])
            if key not in latest or line["time_s"] >= latest[key]["time_s"]:
                latest[key] = line
            if line["step"] not in last_of_step or line["time_s"] >= last_of_step[line["step"]]["time_s"]:
                last_of_step[line["step"]] = line
    parts = {step: line.get("parts") for step, line in last_of_step.items()}
    return [latest[key] for key in sorted(latest) if latest[key].get("parts") == parts[key[0]]]


def _is_torn(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _folder(run: RunDir) -> Path:
    return run.root / WINDOWS_DIR
