"""Where metrics go: metrics.jsonl always and first, Weights & Biases when asked. A tracker can never stop a run."""

import json
import logging
import os
import queue
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genrec.config import ExperimentConfig
from genrec.whole_file import write_atomically

logger = logging.getLogger(__name__)

MAX_WAITING_RECORDS = 1_000
"""Lines that wait for a slow tracker; more are dropped there (metrics.jsonl has them all)."""

WANDB_FILE = "wandb.json"
"""In the run directory: id and page of the run on Weights & Biases; the page is null where it runs offline."""

CLOSE_TIMEOUT_S = 10.0
"""How long the end of a run waits for the tracker."""


class Sender:
    """Hands records to a remote tracker from a thread of its own, so that its failures and waits stay there.

    `start` makes the tracker's run, an object with `log` and `finish`; that may block as well, so it happens in the
    thread. The first failure is said once and ends the sending; the thread is a daemon and holds up no process.
    """

    def __init__(self, start: Callable[[], Any], run_id: str) -> None:
        self.id = run_id
        self._start = start
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(MAX_WAITING_RECORDS)
        self._num_dropped = 0
        self._failed = False
        self._thread = threading.Thread(target=self._send_all, name="tracker", daemon=True)
        self._thread.start()

    def send(self, record: dict[str, Any]) -> None:
        """Queues a record and returns at once; drops it when the tracker is too far behind, or has failed."""
        if self._failed:
            return
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._num_dropped += 1
            if self._num_dropped == 1:
                logger.warning(
                    "Weights & Biases is %d lines behind; further ones go to metrics.jsonl alone.", MAX_WAITING_RECORDS
                )

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Lets the tracker finish, for a limited time."""
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            timeout_s = 0.0  # it stands still: there is nothing to wait for
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("Weights & Biases did not finish within %.0f s; its page may lack lines.", timeout_s)

    def _send_all(self) -> None:
        try:
            run = self._start()
            while (record := self._waiting.get()) is not None:
                # Weights & Biases drops what is older than its newest step; a late line has its step as a value.
                run.log(_flat(record), step=None if record.get("background") else record.get("step"))
            run.finish()
        except Exception as error:  # the tracker's own failures, whatever they are, must not end training
            self._failed = True
            logger.warning("Weights & Biases failed and is switched off; metrics are in metrics.jsonl: %s", error)


class Tracker:
    """Rank 0's writer of metric lines."""

    def __init__(self, path: Path, sender: Sender | None = None) -> None:
        drop_cut_line(path)
        self._file = path.open("a", encoding="utf-8")
        self._sender = sender

    @property
    def id(self) -> str | None:
        """Weights & Biases' id of the run, kept in checkpoints so that a restart continues it."""
        return None if self._sender is None else self._sender.id

    def log(self, record: dict[str, Any]) -> None:
        """Appends one line, whole or not at all in the eyes of a reader, and sends it on."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._sender is not None:
            self._sender.send(record)

    def close(self) -> None:
        """Ends the trackers; waits at most `CLOSE_TIMEOUT_S`."""
        self._file.close()
        if self._sender is not None:
            self._sender.close()


def drop_cut_line(path: Path) -> None:
    """Removes what a kill left of a last line, so that the next one does not continue it."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def start_tracker(config: ExperimentConfig, path: Path, resume_id: str | None) -> Tracker:
    """A tracker that appends to `path`; Weights & Biases runs offline when there is no key."""
    if not config.tracking.wandb:
        return Tracker(path)
    # The id is ours, so that it is known before Weights & Biases has answered, or when it never does.
    run_id = resume_id or secrets.token_hex(4)
    return Tracker(path, Sender(lambda: _start_wandb(config, path.parent, run_id), run_id))


def _start_wandb(config: ExperimentConfig, folder: Path, run_id: str) -> Any:
    import wandb

    has_key = bool(os.environ.get("WANDB_API_KEY")) or (Path.home() / ".netrc").is_file()
    run = wandb.init(
        project=config.tracking.wandb_project,
        group=config.tracking.wandb_group,
        name=config.name,
        id=run_id,
        resume="allow",
        dir=str(folder),
        config=config.model_dump(mode="json"),
        mode=os.environ.get("WANDB_MODE") or ("online" if has_key else "offline"),  # type: ignore[arg-type]
    )
    write_atomically(folder / WANDB_FILE, json.dumps({"id": run_id, "url": run.url or None}))
    if config.evaluation.validation == "background":
        run.define_metric("validation/*", step_metric="validation/step")
    return run


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Nested metrics as `kind/name`, the way Weights & Biases groups panels."""
    kind = record.get("kind", "run")
    nested = {f"{kind}/{k}": v for part in ("metrics", "heads") for k, v in record.get(part, {}).items()}
    own_step = () if record.get("background") else ("step",)
    return nested | {f"{kind}/{k}": v for k, v in record.items() if isinstance(v, int | float) and k not in own_step}
