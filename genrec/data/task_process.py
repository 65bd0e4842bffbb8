"""A process that calls functions for its parent: `python -m genrec.data.task_process`, started by `local_tasks.py`.

It reads (function, task), pickled twice, from stdin and answers with a pickled (result, error, trace) on stdout. It
ends at once, in the middle of a task too, when its parent does: stdin is then at its end.
"""

import os
import pickle
import queue
import sys
import threading
import traceback
from typing import Any, BinaryIO

from genrec.data.ray_session import call_task
from genrec.errors import GenrecError

Answer = tuple[Any, GenrecError | None, str]
"""What a function returned, the user's mistake, and the trace of ours."""


def main() -> None:
    """Answers until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a function prints must not come between the answers
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_tasks, args=(sys.stdin.buffer, tasks), daemon=True).start()
    while True:
        answer: Answer
        try:
            answer = (*call_task(*pickle.loads(tasks.get())), "")
        except Exception:
            answer = (None, None, traceback.format_exc())
        pickle.dump(answer, answers)
        answers.flush()


def _read_tasks(stream: BinaryIO, tasks: "queue.SimpleQueue[bytes]") -> None:
    """Hands on tasks as they come, pickled: what is wrong with one must not end this thread."""
    while True:
        try:
            tasks.put(pickle.load(stream))
        except (EOFError, pickle.UnpicklingError):  # the parent has gone
            os._exit(1)


if __name__ == "__main__":
    main()
