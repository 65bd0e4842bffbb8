"""How near `genrec plan` is: its memory and step time beside what `genrec bench` measured, case by case.

    genrec bench benchmarks/matrices/memory.yaml --launcher local
    python benchmarks/predictions.py benchmarks/out/memory.json [--calibrate-on CASE] [--json ...] [--markdown FILE]

Memory is predicted from the config, the prepared set and the machine alone. Step time takes its two rates from one
case, the calibration run (the first one, or `--calibrate-on`), and every other case is predicted with them. Errors are
predicted / measured - 1.
"""

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from genrec.bench.matrix import Case, Matrix, cases_of
from genrec.bench.result import Result, Row, read_result
from genrec.planning.calibration import Calibration, assumed, fitted
from genrec.planning.machine import this_machine
from genrec.planning.planner import Option, predict_here
from script import finish, options_of, result_of, run_script

MIB = 2**20
WANTED_MEMORY, WANTED_STEP = 0.10, 0.25
"""How far a prediction may be from what is measured."""

STAGE = "engine.zero_stage"
TITLES = {"model.name": "model", "model.dim": "dim", "batch.tokens_per_step": "events a step"}


def measured_cases(measured: Result) -> list[tuple[Case, dict[str, Any]]]:
    """The cases of a matrix that were measured in full, each with its medians; ends the script where there is none."""
    matrix = Matrix(**{key: value for key, value in measured.config.items() if key != "launcher"})
    medians = {
        name: found["full"] for name, found in measured.medians.items() if found.get("full", {}).get("ok", 0) > 0
    }
    cases = [(case, medians[case.name]) for case in cases_of(matrix, measured.name) if case.name in medians]
    if not cases:
        raise SystemExit("No case was measured in full and ended well; run `genrec bench` with `modes: [full]`.")
    return cases


def compare(measured: Result, calibrate_on: str | None) -> Result:
    """A row a case that was measured in full: memory and step time, predicted and measured."""
    cases = measured_cases(measured)
    chosen = calibrate_on or cases[0][0].name
    first = next((one for one in cases if one[0].name == chosen), None)
    if first is None:
        names = ", ".join(case.name for case, _ in cases)
        raise SystemExit(f"{chosen!r} is no case that was measured; those are {names}.")
    calibration = _calibration(first[0], first[1]["step_s"]["median"])
    rows = [_row(case, medians, calibration, case is first[0]) for case, medians in cases]
    return result_of(
        __file__,
        config={
            "of": measured.name,
            "measured_at": measured.commit,
            "calibrated_on": chosen,
            "command": f"python benchmarks/predictions.py benchmarks/out/{measured.name}.json",
        },
        rows=rows,
        medians={
            "memory_error": errors_of(rows, "memory_error", WANTED_MEMORY),
            "step_error": errors_of([row for row in rows if row["case"] != chosen], "step_error", WANTED_STEP),
        },
        packages=("torch", "deepspeed"),
    )


def _calibration(case: Case, step_s: float) -> Calibration:
    base = assumed(this_machine(case.config, measure=True))
    time = _option(case, base).time
    scaled = time.compute + time.overhead
    return fitted(base, step_s=step_s, predicted_s=time.total, compute_s=scaled, source=case.name)


def _option(case: Case, calibration: Calibration) -> Option:
    option = predict_here(case.config, calibration)
    assert option is not None, "the case ran, so its micro-batches hold its windows"
    return option


def _row(case: Case, found: dict[str, dict[str, float]], calibration: Calibration, is_calibration: bool) -> Row:
    option = _option(case, calibration)
    peak, step_s = found["peak_bytes"]["median"], found["step_s"]["median"]
    row: Row = {
        "case": case.name,
        **case.overrides,
        "mode": "full",
        "status": "ok",
        "workers": case.config.cluster.max_workers,
        "peak_bytes": peak,
        "predicted_bytes": round(option.memory.total),
        "memory_error": round(option.memory.total / peak - 1, 4),
        "step_s": step_s,
    }
    if is_calibration:
        return row  # its step was not predicted
    return row | {
        "predicted_step_s": round(option.time.total, 5),
        "step_error": round(option.time.total / step_s - 1, 4),
    }


def errors_of(rows: list[Row], name: str, wanted: float) -> dict[str, float | int]:
    """Median and largest of the absolute errors in a column, and how many are within what is wanted."""
    errors = [abs(float(row[name] or 0)) for row in rows]
    if not errors:
        return {"cases": 0}
    within = sum(error <= wanted for error in errors)
    return {"cases": len(errors), "median": median(errors), "largest": max(errors), f"within_{wanted:g}": within}


def as_markdown(result: Result) -> str:
    """The tables of the README: memory and step time, predicted / measured; an error beyond what is wanted is bold."""
    memory = [_told(row, "predicted_bytes", "peak_bytes", MIB, WANTED_MEMORY) for row in result.rows]
    times = [_told(row, "predicted_step_s", "step_s", 1e-3, WANTED_STEP) for row in result.rows]
    return (
        f"Peak memory of a worker in MiB, predicted / measured:\n\n{_table(result.rows, memory)}\n"
        f"Time of a step in ms, predicted / measured:\n\n{_table(result.rows, times)}"
    )


def _told(row: Row, predicted: str, measured: str, unit: float, wanted: float) -> str:
    """`187 / 189 (-1%)`."""
    seen, foreseen = float(row[measured] or 0), row.get(predicted)
    if foreseen is None:
        return f"{seen / unit:,.0f} (calibration)"
    error = float(foreseen) / seen - 1
    text = f"**{error:+.0%}**" if abs(error) > wanted else f"{error:+.0%}"
    return f"{float(foreseen) / unit:,.0f} / {seen / unit:,.0f} ({text})"


def _table(rows: list[Row], cells: list[str]) -> str:
    """A line for each setting with a column for each ZeRO stage; a line for each case where no stage was varied."""
    others = [key for key in rows[0] if "." in key and key != STAGE]
    if not all(STAGE in row and all(key in row for key in others) for row in rows):
        lines = [["case", "predicted / measured"], ["---", "--:"]]
        lines += [[str(row["case"]), cell] for row, cell in zip(rows, cells, strict=True)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)
    stages = list(dict.fromkeys(row[STAGE] for row in rows))
    by_setting: dict[tuple[str, ...], dict[object, str]] = {}
    for row, cell in zip(rows, cells, strict=True):
        by_setting.setdefault(tuple(_spoken(row[key]) for key in others), {})[row[STAGE]] = cell
    lines = [[*(TITLES.get(key, key) for key in others), *(f"ZeRO-{stage}" for stage in stages)]]
    lines += [["---" if isinstance(rows[0][key], str) else "--:" for key in others] + ["--:"] * len(stages)]
    lines += [[*setting, *(found.get(stage, "") for stage in stages)] for setting, found in by_setting.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _spoken(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def table_options(script: str, doc: str | None) -> argparse.ArgumentParser:
    """What a script is told that reads a measured matrix and writes a table."""
    parser = options_of(script, doc)
    parser.add_argument("measured", type=Path, help="result of genrec bench")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    return parser


def tell(result: Result, table: str, arguments: argparse.Namespace) -> None:
    """Prints the table and the errors, and writes the JSON."""
    print(table)
    finish(result, arguments.json)
    if arguments.markdown:
        arguments.markdown.write_text(table, encoding="utf-8")


def main() -> None:
    """Compares, prints the table and the errors, and writes the JSON."""
    parser = table_options(__file__, __doc__)
    parser.add_argument("--calibrate-on", help="name of the case whose step time is taken over; default: the first")
    arguments = parser.parse_args()
    result = compare(read_result(arguments.measured), arguments.calibrate_on)
    tell(result, as_markdown(result), arguments)


if __name__ == "__main__":
    run_script(main)
