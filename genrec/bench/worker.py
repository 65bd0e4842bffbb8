"""A worker of a benchmark: `python -m genrec.bench.worker TASK.json`, with RANK and WORLD_SIZE as torchrun gives them.

It writes what it read, or why it could not, to `rank-N.json` beside the task. It ends when the process that started it
is gone.
"""

import errno
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

PARENT_CHECK_S = 1.0
OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc", "not enough memory")
"""How libraries say it who raise another error than MemoryError, in small letters."""


def says_out_of_memory(text: str) -> bool:
    """Whether a message is about memory that could not be had."""
    return any(words in text.lower() for words in OUT_OF_MEMORY)


def main() -> None:
    """Measures what the task says; exit code 1 when that failed."""
    task_path = Path(sys.argv[1])
    answer = task_path.with_name(f"rank-{os.environ['RANK']}.json")
    end_with_parent()
    try:
        told: dict[str, Any] = {"status": "ok", **_measure(json.loads(task_path.read_text(encoding="utf-8")))}
    except Exception as error:
        told = {"status": _status_of(error), "error": one_line(error), "time_s": time.time()}
        draft = answer.with_suffix(".tmp")
        draft.write_text(json.dumps(told), encoding="utf-8")
        draft.replace(answer)
        # Others may wait for this worker for ever, and a group of workers that is torn down waits for them.
        sys.stderr.flush()
        os._exit(1)
    answer.write_text(json.dumps(told), encoding="utf-8")


def one_line(error: BaseException) -> str:
    """What went wrong, in one line."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    from genrec.errors import GenrecError

    return first if isinstance(error, GenrecError) and first else f"{type(error).__name__}: {first}".rstrip(": ")


def _measure(task: dict[str, Any]) -> dict[str, Any]:
    from genrec.bench.measure import Reading, Span, measure
    from genrec.config import ExperimentConfig, config_from_dict
    from genrec.run_dir import run_dir_of
    from genrec.training.context import WorkerContext
    from genrec.training.local import run_work

    config = config_from_dict(task["config"])
    readings: list[Reading] = []

    def work(config: ExperimentConfig, context: WorkerContext) -> None:
        readings.append(measure(config, context, Span(**task["span"])))

    run_work(work, config, run_dir_of(config), time.time())
    return readings[-1].as_values()


def _status_of(error: BaseException) -> str:
    import torch

    out = isinstance(error, MemoryError | torch.OutOfMemoryError) or says_out_of_memory(str(error))
    out = out or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    return "out-of-memory" if out else "failed"


def end_with_parent() -> None:
    """From now on this process ends when the one that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


if __name__ == "__main__":
    main()
