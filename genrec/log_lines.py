"""Lines of a log, as text or as JSON with the run, the worker and the step that they are about.

{"time": "2026-03-01T12:00:00.123Z", "level": "WARNING", "logger": "genrec.training.hooks", "message": "...",
 "run": "quickstart", "rank": 0, "step": 1200}
"""

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]


@dataclass(slots=True)
class Place:
    """What a process is doing: `run` is empty and `rank`, `step` are None where that is not known."""

    run: str = ""
    rank: int | None = None
    step: int | None = None


PLACE = Place()
"""Of this process; a log belongs to a process as a whole, so what its lines say of it does too."""


class JsonLines(logging.Formatter):
    """A record as one line of JSON; an exception is its text, in the field `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "run": PLACE.run,
            "rank": PLACE.rank,
            "step": PLACE.step,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def formatter(log_format: LogFormat) -> logging.Formatter:
    """What writes the lines."""
    if log_format == "json":
        return JsonLines()
    return logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")


def log_worker_to_stderr(log_format: LogFormat) -> None:
    """A Ray worker's lines as JSON to where Ray collects them; as text they go there anyway."""
    log = logging.getLogger("genrec")
    if log_format == "json" and not any(isinstance(handler.formatter, JsonLines) for handler in log.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(JsonLines())
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
