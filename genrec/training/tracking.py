"""Where metrics go: metrics.jsonl always, Weights & Biases when asked. A tracker can never stop a run."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from genrec.config import ExperimentConfig

logger = logging.getLogger(__name__)


class Tracker:
    """Rank 0's writer of metric lines."""

    def __init__(self, path: Path, wandb_run: Any = None) -> None:
        _drop_cut_line(path)
        self._file = path.open("a", encoding="utf-8")
        self._wandb = wandb_run

    @property
    def id(self) -> str | None:
        """Weights & Biases' id of the run, kept in checkpoints so that a restart continues it."""
        return None if self._wandb is None else str(self._wandb.id)

    def log(self, record: dict[str, Any]) -> None:
        """Appends one line, whole or not at all in the eyes of a reader, and sends it on."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._wandb is None:
            return
        try:
            self._wandb.log(_flat(record), step=record.get("step"))
        except Exception as error:  # the tracker's own failures, whatever they are, must not end training
            logger.warning("Weights & Biases stopped answering and is switched off for this run: %s", error)
            self._wandb = None

    def close(self) -> None:
        """Ends the trackers."""
        self._file.close()
        if self._wandb is None:
            return
        try:
            self._wandb.finish()
        except Exception as error:  # see `log`
            logger.warning("Weights & Biases could not finish the run: %s", error)


def _drop_cut_line(path: Path) -> None:
    """Removes what a kill left of a last line, so that the next one does not continue it."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def start_tracker(config: ExperimentConfig, path: Path, resume_id: str | None) -> Tracker:
    """A tracker that appends to `path`; Weights & Biases runs offline when there is no key."""
    return Tracker(path, _start_wandb(config, path.parent, resume_id) if config.tracking.wandb else None)


def _start_wandb(config: ExperimentConfig, folder: Path, resume_id: str | None) -> Any:
    try:
        import wandb

        has_key = bool(os.environ.get("WANDB_API_KEY")) or (Path.home() / ".netrc").is_file()
        return wandb.init(
            project=config.tracking.wandb_project,
            name=config.name,
            id=resume_id,
            resume="allow",
            dir=str(folder),
            config=config.model_dump(mode="json"),
            mode=os.environ.get("WANDB_MODE") or ("online" if has_key else "offline"),  # type: ignore[arg-type]
        )
    except Exception as error:  # see `Tracker.log`
        logger.warning("Weights & Biases could not be started; metrics are in metrics.jsonl: %s", error)
        return None


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Nested metrics as `kind/name`, the way Weights & Biases groups panels."""
    kind = record.get("kind", "run")
    nested = {f"{kind}/{k}": v for k, v in record.get("metrics", {}).items()}
    return nested | {f"{kind}/{k}": v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
