"""Runs a matrix: everything is checked first, every measurement is kept as soon as it is done, and a rerun goes on."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import genrec
from genrec.bench.matrix import Case, Matrix, cases_of, load_matrix, measurements_of, output_of
from genrec.bench.processes import Task, run_task, task_of
from genrec.bench.result import Result, Row, describe_machine, git_commit, installed_versions, write_result
from genrec.bench.rows import medians_of
from genrec.config_errors import read_yaml
from genrec.data.prepare import ensure_prepared
from genrec.data.prepare_job import Progress
from genrec.errors import ConfigError, GenrecError
from genrec.run_dir import value_differences, write_atomically
from genrec.semantic.tokenize import ensure_map
from genrec.training.start import read_fitting_manifest

Watch = Callable[[int, int, Row | None], None]
"""Called with the measurements done, how many there are, and the row just done (None at the start)."""

VERSIONS = ("genrec", "torch", "deepspeed", "ray", "numpy", "pyarrow")
MATRIX_FILE = "matrix.json"


def run_matrix(
    path: Path,
    overrides: Sequence[str] | None = None,
    *,
    launcher: Literal["ray", "local"] = "ray",
    output: Path | None = None,
    fresh: bool = False,
    watch: Watch = lambda done, total, row: None,
    progress: Progress | None = None,
) -> tuple[Result, Path]:
    """The result of a matrix, and the file that holds it.

    Finished measurements lie in `<output>.cases/`, one file each, and are not measured again, whatever their status.
    Raises ConfigError when the matrix, a case of it or its data is wrong, and, unless `fresh`, when a result with
    another matrix, launcher or version of genrec has been begun there.
    """
    matrix = load_matrix(path, overrides)
    cases = cases_of(matrix, str(path))
    for case in cases:
        _check_workers(case, matrix, path)
    _prepare(cases, path, progress)
    output = output or output_of(matrix)
    echo = {**_echo(matrix), "launcher": launcher}
    commit = git_commit(Path(genrec.__file__).parent)
    folder = _open_cases(output, {**echo, "commit": commit}, fresh=fresh)
    tasks = [task_of(measurement, matrix) for measurement in measurements_of(matrix, cases)]
    rows = {task.key: row for task in tasks if (row := _read_row(folder, task)) is not None}
    pending = [task for task in tasks if task.key not in rows]
    watch(len(rows), len(tasks), None)
    for task, row in _run(pending, launcher):
        write_atomically(folder / f"{task.key}.json", json.dumps(row, indent=1))
        rows[task.key] = row
        watch(len(rows), len(tasks), row)
    in_order = [rows[task.key] for task in tasks]
    result = Result(
        name=matrix.name,
        config=echo,
        rows=in_order,
        medians=medians_of(in_order),
        versions=installed_versions(VERSIONS),
        machine=describe_machine(),
        commit=commit,
    )
    write_result(output, result)
    return result, output


def _run(tasks: Sequence[Task], launcher: str) -> Iterator[tuple[Task, Row]]:
    if launcher == "local" or not tasks:
        return ((task, run_task(task)) for task in tasks)
    from genrec.bench.ray_cases import run_tasks

    return run_tasks(tasks)


def _check_workers(case: Case, matrix: Matrix, path: Path) -> None:
    cluster = case.config.cluster
    if matrix.memory_limit_bytes is not None and cluster.gpus_per_worker:
        raise ConfigError(
            f"{path}, case {case.name}: memory_limit_bytes ({matrix.memory_limit_bytes}) limits the memory of a CPU, "
            f"and cluster.gpus_per_worker is {cluster.gpus_per_worker:g}; leave the limit out."
        )
    if cluster.min_workers != cluster.max_workers:
        raise ConfigError(
            f"{path}, case {case.name}: cluster.workers is a range ({cluster.min_workers} to {cluster.max_workers}), "
            "and a measurement needs one number; set cluster.workers in the matrix."
        )


def _prepare(cases: Sequence[Case], path: Path, progress: Progress | None) -> None:
    """Prepares data sets, and makes maps of codes, that are not there; raises the first case's mistake in it."""
    for case in cases:
        try:
            ensure_prepared(case.config.data, progress)
            ensure_map(case.config)
            read_fitting_manifest(case.config)
        except GenrecError as error:
            raise type(error)(f"{path}, case {case.name}: {error}") from error


def _echo(matrix: Matrix) -> dict[str, Any]:
    """The matrix with the content of its base."""
    values = matrix.model_dump(mode="json")
    return values if isinstance(matrix.base, dict) else {**values, "base": read_yaml(matrix.base)}


def _open_cases(output: Path, echo: dict[str, Any], *, fresh: bool) -> Path:
    """The folder of finished measurements, which belong to this matrix; raises ConfigError when they do not."""
    folder = output.with_name(output.name + ".cases")
    known = folder / MATRIX_FILE
    if fresh and folder.exists():
        if not known.is_file():
            raise ConfigError(f"--fresh would delete {folder}, which genrec bench has not made; give another --output.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if known.is_file():
        changes = value_differences(json.loads(known.read_text(encoding="utf-8")), json.loads(json.dumps(echo)))
        if changes:
            shown = "; ".join(changes[:5]) + ("; ..." if len(changes) > 5 else "")
            raise ConfigError(
                f"{folder} has measurements of another matrix ({shown}); start over with --fresh, or give another "
                "--output."
            )
    write_atomically(known, json.dumps(echo, indent=1))
    return folder


def _read_row(folder: Path, task: Task) -> Row | None:
    path = folder / f"{task.key}.json"
    if not path.is_file():
        return None
    row: Row = json.loads(path.read_text(encoding="utf-8"))
    return row
