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
from script import finish, options_of, result_of

MIB = 2**20
COLUMNS = ("peak", "predicted", "error", "step", "predicted step", "error")


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
        config={"of": measured.name, "measured_at": measured.commit, "calibrated_on": chosen},
        rows=rows,
        medians={
            "memory_error": errors_of(rows, "memory_error", 0.10),
            "step_error": errors_of([row for row in rows if row["case"] != chosen], "step_error", 0.25),
        },
        packages=("torch", "deepspeed"),
    )


def _calibration(case: Case, step_s: float) -> Calibration:
    machine = this_machine(case.config, measure=False)
    base = assumed(machine.peak_flops, on_gpu=machine.on_gpu)
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
    return {
        "case": case.name,
        **{key: value for key, value in case.overrides.items() if not isinstance(value, list | dict)},
        "peak_bytes": peak,
        "predicted_bytes": round(option.memory.total),
        "memory_error": round(option.memory.total / peak - 1, 4),
        "step_s": step_s,
        "predicted_step_s": round(option.time.total, 5),
        "step_error": round(option.time.total / step_s - 1, 4),
        "calibration": "yes" if is_calibration else "no",
    }


def errors_of(rows: list[Row], name: str, wanted: float) -> dict[str, float | int]:
    """Median and largest of the absolute errors in a column, and how many are within what is wanted."""
    errors = [abs(float(row[name] or 0)) for row in rows]
    if not errors:
        return {"cases": 0}
    within = sum(error <= wanted for error in errors)
    return {"cases": len(errors), "median": median(errors), "largest": max(errors), f"within_{wanted:g}": within}


def as_markdown(result: Result) -> str:
    """The table of the README."""
    lines = [f"| case | {' | '.join(COLUMNS)} |", "|---|--:|--:|--:|--:|--:|--:|"]
    for row in result.rows:
        told = "calibration" if row["calibration"] == "yes" else f"{row['step_error']:+.0%}"
        memory = [f"{row[key] / MIB:.0f} MiB" for key in ("peak_bytes", "predicted_bytes")]
        times = [f"{1000 * row[key]:.0f} ms" for key in ("step_s", "predicted_step_s")]
        cells = [row["case"], *memory, f"{row['memory_error']:+.0%}", *times, told]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


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
    main()
