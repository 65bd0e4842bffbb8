"""Runs commands as a user does, from the folder that a script was called in; a failure has a status and one line."""

import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from genrec.run_dir import RunDir
from peer_process import Finished, run_child

TIMEOUT_S = 3_600.0


class CommandFailed(SystemExit):
    """A command that did not end well; `finished` says how. A script that leaves it alone ends with its sentence."""

    def __init__(self, command: Sequence[str | Path], finished: Finished) -> None:
        words = shlex.join(str(word) for word in command)
        super().__init__(f"{words}\nended with status {finished.status}: {finished.message.strip()}")
        self.finished = finished


def torchrun(workers: int, *words: str) -> list[str]:
    """The command that starts `words` (a script or `-m module`, and its arguments) as so many local workers."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    return [sys.executable, *start, *words]


def run_command(command: Sequence[str | Path], *, timeout_s: float = TIMEOUT_S) -> str:
    """What a command printed; raises CommandFailed, with everything that it started ended, when it fails or hangs."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        finished = run_child(command, log=log, timeout_s=timeout_s, threads=None, folder=Path.cwd())
        if finished.status != "ok":
            raise CommandFailed(command, finished)
        return log.read_text(encoding="utf-8", errors="replace")


def prepare(file: str, overrides: Sequence[str]) -> None:
    """`genrec prepare`; raises CommandFailed."""
    run_command([sys.executable, "-m", "genrec", "prepare", file, *overrides])


@contextmanager
def trained(
    file: str, words: Sequence[str], *, local_workers: int | None = None, timeout_s: float = TIMEOUT_S
) -> Iterator[RunDir]:
    """The directory of a run that `genrec train` made with `words` for overrides and options; deleted afterwards.

    With `local_workers` torchrun starts so many workers, without Ray. Raises CommandFailed.
    """
    with tempfile.TemporaryDirectory() as runs:
        told = ["train", file, *words, f"runs_dir={runs}", "name=measured"]
        if local_workers is None:
            command = [sys.executable, "-m", "genrec", *told]
        else:
            command = torchrun(local_workers, "-m", "genrec", *told, "--launcher", "local")
        run_command(command, timeout_s=timeout_s)
        yield RunDir(Path(runs) / "measured")
