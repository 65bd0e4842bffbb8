"""What the paths of `genrec report` are: run directories, results of benchmarks, folders of such results."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genrec.bench.result import Result, read_result
from genrec.errors import DataError


@dataclass(frozen=True, slots=True)
class BenchSource:
    """The result of a benchmark and the file it was read from."""

    path: Path
    result: Result


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything that a report is about, in the order it was named."""

    runs: tuple[Path, ...]
    results: tuple[BenchSource, ...]


def read_sources(paths: Sequence[Path]) -> Sources:
    """What is at each path; raises DataError for a path that is neither, and for a damaged result."""
    runs: list[Path] = []
    results: list[BenchSource] = []
    for path in dict.fromkeys(paths):
        if is_run(path):
            runs.append(path)
        elif path.is_file():
            results.append(BenchSource(path, bench_result(path)))
        elif path.is_dir() and (files := sorted(path.glob("*.json"))):
            results.extend(BenchSource(file, bench_result(file)) for file in files)
        else:
            raise DataError(
                f"{path} is neither a run directory (no config.yaml), nor the JSON result of a benchmark, nor a folder "
                "of such results; give what `genrec train` or `genrec bench` printed."
            )
    return Sources(tuple(runs), tuple(results))


def is_run(path: Path) -> bool:
    """True for a folder that `genrec train` has made."""
    return (path / "config.yaml").is_file()


def bench_result(path: Path) -> Result:
    """A benchmark's result; raises DataError when the file is damaged or of another kind."""
    again = "measure again, or give another file"
    try:
        result = read_result(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {again}.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is damaged: it is not JSON ({error.msg}, line {error.lineno}); {again}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged: it is not text; {again}.") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not the result of a benchmark ({error}); {again}.") from error
    _check(path, result)
    return result


def _check(path: Path, result: Result) -> None:
    kinds = {
        "name": (result.name, str),
        "config": (result.config, dict),
        "rows": (result.rows, list),
        "medians": (result.medians, dict),
        "versions": (result.versions, dict),
        "machine": (result.machine, dict),
        "commit": (result.commit, str),
        "finished": (result.finished, str),
    }
    wrong = [
        f"{name} is a {type(value).__name__}" for name, (value, kind) in kinds.items() if not isinstance(value, kind)
    ]
    if not wrong and not all(isinstance(row, dict) for row in result.rows):
        wrong = ["a row is no object"]
    if wrong:
        raise DataError(f"{path} is not the result of a benchmark ({'; '.join(wrong)}); give a file of `genrec bench`.")
