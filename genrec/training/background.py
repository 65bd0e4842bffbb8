"""Work that goes on beside training, in a thread of its own."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


def in_background(work: Callable[[], None], *, name: str, finally_: Callable[[], None]) -> "Future[None]":
    """Starts `work`, then `finally_`, in a thread; the answer is done after both and holds what they raised.

    The thread is a daemon, unlike those of an executor: a process that is told to end at once does not wait for it.
    """
    done: Future[None] = Future()

    def run() -> None:
        try:
            try:
                work()
            finally:
                finally_()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done
