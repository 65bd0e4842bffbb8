"""The console's view of a run: it follows metrics.jsonl, so it is the same for every launcher."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

POLL_S = 0.5
PLAIN_LINE_S = 15.0
"""Where the console is a file or the log of a job, a bar shows nothing: a line this often does."""


@contextmanager
def progress_of(metrics_path: Path, console: Console) -> Iterator[None]:
    """Shows step, loss, events/s, data wait and ETA while the block runs, and a line for every validation."""
    view = _View(metrics_path, console)
    with view.progress:
        thread = threading.Thread(target=view.follow, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            view.done.set()
            thread.join()


class _View:
    def __init__(self, metrics_path: Path, console: Console) -> None:
        self.path = metrics_path
        self.position = metrics_path.stat().st_size if metrics_path.is_file() else 0
        self.done = threading.Event()
        self.said_s = 0.0
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn(), console=console
        )
        self.task: TaskID = self.progress.add_task("starting workers", total=None)

    def follow(self) -> None:
        while not self.done.wait(POLL_S):
            self._read()
        self._read()

    def _read(self) -> None:
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self.position)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                self.position += len(line)
                self._show(json.loads(line))

    def _show(self, record: dict[str, Any]) -> None:
        kind = record["kind"]
        if kind == "start":
            self.progress.update(self.task, total=record["end_step"], completed=record["step"])
            how = f"resumed at step {record['step']}" if record["resumed"] else "started"
            self.progress.console.print(f"{how} after {record['seconds_to_first_step']:.0f} s")
            for caution in record.get("cautions", ()):
                self.progress.console.print(f"Caution: {caution}", highlight=False, markup=False)
        elif kind == "train":
            minutes, seconds = divmod(round(record["eta_s"]), 60)
            text = (
                f"step {record['step']}  loss {record['loss']:.4f}  {record['events_per_s']:,.0f} events/s  "
                f"data wait {100 * record['data_wait_fraction']:.1f}%  ETA {minutes}:{seconds:02d}"
            )
            self.progress.update(self.task, completed=record["step"], description=text)
            if not self.progress.console.is_terminal and time.monotonic() - self.said_s >= PLAIN_LINE_S:
                self.said_s = time.monotonic()
                self.progress.console.print(text, highlight=False)
        elif kind == "validation":
            metrics = "  ".join(f"{name} {value:.4f}" for name, value in record["metrics"].items() if "@10" in name)
            mark = "  (best)" if record["best"] else ""
            late = f"  ({record['seconds_late']:.0f} s later)" if record.get("background") else ""
            self.progress.console.print(f"epoch {record['epoch']:.0f}  {metrics}{mark}{late}", highlight=False)
        elif kind == "validation_failed":
            text = f"epoch {record['epoch']:.0f}  not validated: {record['problem']}"
            self.progress.console.print(text, highlight=False, markup=False)
