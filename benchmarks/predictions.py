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

from genrec.bench.matrix import Case, Matrix, cases_of
from genrec.bench.result import Result, Row, describe_machine, git_commit, installed_versions, read_result, write_result
from genrec.planning.calibration import Calibration, assumed, fitted
from genrec.planning.machine import this_machine
from genrec.planning.planner import Option, predict_here

MIB = 2**20
COLUMNS = ("peak", "predicted", "error", "step", "predicted step", "error")


def compare(measured: Result, calibrate_on: str | None) -> Result:
    """A row a case that was measured in full: memory and step time, predicted and measured."""
    medians = {
        name: found["full"] for name, found in measured.medians.items() if found.get("full", {}).get("ok", 0) > 0
    }
    matrix = Matrix(**{key: value for key, value in measured.config.items() if key != "launcher"})
    cases = [case for case in cases_of(matrix, measured.name) if case.name in medians]
    if not cases:
        raise SystemExit("No case was measured in full and ended well; run `genrec bench` with `modes: [full]`.")
    chosen = calibrate_on or cases[0].name
    first = next((case for case in cases if case.name == chosen), None)
    if first is None:
        raise SystemExit(f"{chosen!r} is no case that was measured; those are {', '.join(c.name for c in cases)}.")
    calibration = _calibration(first, medians[first.name]["step_s"]["median"])
    rows = [_row(case, medians[case.name], calibration, case is first) for case in cases]
    times = [abs(float(row["step_error"])) for row in rows if row["case"] != first.name]
    memory = [abs(float(row["memory_error"])) for row in rows]
    return Result(
        name="predictions",
        config={"of": measured.name, "measured_at": measured.commit, "calibrated_on": first.name},
        rows=rows,
        medians={
            "memory_error": _spread(memory, 0.10),
            "step_error": _spread(times, 0.25),
        },
        versions=installed_versions(("torch", "deepspeed")),
        machine=describe_machine(),
        commit=git_commit(Path(__file__).parent),
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


def _spread(errors: list[float], wanted: float) -> dict[str, float | int]:
    """Of absolute errors."""
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


def main() -> None:
    """Compares, prints the table and the errors, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, help="result of genrec bench")
    parser.add_argument("--calibrate-on", help="name of the case whose step time is taken over; default: the first")
    parser.add_argument("--json", default="benchmarks/out/predictions.json")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    result = compare(read_result(arguments.measured), arguments.calibrate_on)
    table = as_markdown(result)
    print(table)
    print(result.medians)
    write_result(arguments.json, result)
    if arguments.markdown:
        arguments.markdown.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
