"""What the scripts here have in common: how they are told, the lines of their result, and how they end."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genrec.bench.result import Result, Row, describe_machine, git_commit, installed_versions, write_result
from genrec.bench.worker import says_out_of_memory
from genrec.errors import GenrecError


def options_of(script: str, doc: str | None) -> argparse.ArgumentParser:
    """The options of a script: its docstring for help, and `--json`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default=f"benchmarks/out/{Path(script).stem}.json", help="file of the result")
    return parser


def out_of_memory_row(error: Exception) -> Row:
    """What a row says when memory ran out: its status and error; raises any other error again."""
    text = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and not says_out_of_memory(text):
        raise error
    return {"status": "out-of-memory", "error": text[:300] or type(error).__name__}


def result_of(
    script: str,
    *,
    config: dict[str, Any],
    rows: list[Row],
    medians: dict[str, Any],
    packages: Sequence[str],
    machine: dict[str, Any] | None = None,
) -> Result:
    """The result of a script, under its name: with this machine, the versions of the `packages`, and its commit.

    `machine` are facts beside those of every result.
    """
    return Result(
        name=Path(script).stem,
        config=config,
        rows=rows,
        medians=medians,
        versions=installed_versions(packages),
        machine={**describe_machine(), **(machine or {})},
        commit=git_commit(Path(script).resolve().parent),
    )


def run_script(main: Callable[[], None]) -> None:
    """Runs a script; what genrec refuses ends it with its sentence and exit code, as it ends a command."""
    try:
        main()
    except GenrecError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def finish(result: Result, path: str) -> None:
    """Writes the result and prints its medians."""
    write_result(path, result)
    print(json.dumps(result.medians, indent=1))
