"""Whether ZeRO saves what it should: what each worker keeps, measured, beside the formulas of docs/planning.md.

    genrec bench benchmarks/matrices/zero.yaml --launcher local
    python benchmarks/zero.py benchmarks/out/zero.json [--json ...] [--markdown FILE]

With n weights and N workers, in plain fp32 with AdamW, bytes a worker:

                 ZeRO-0    ZeRO-1 and 2    ZeRO-3
    weights      4 n       4 n             4 n / N, small ones whole
    optimizer    8 n       12 n / N        12 n / N

ZeRO-1 to 3 hold master weights (4 n) in the optimizer state although the model is fp32 itself, so with two workers they
win little more than these cost. Weights and optimizer state are counted on the engine's own tensors between two steps.
The rest is what the peak of resident memory has beyond them: gradients and their flat copies, activations, and what
libraries take; `genrec plan` predicts it.
"""

from typing import Any

from genrec.bench.matrix import Case
from genrec.bench.result import Result, Row, read_result
from genrec.planning.memory import sharding_of
from genrec.planning.model_size import model_size
from genrec.planning.planner import predict_here
from genrec.planning.workload import read_windows
from predictions import errors_of, measured_cases, table_options, tell
from script import result_of, run_script

MIB = 2**20
PARTS = ("weights", "optimizer", "rest", "peak")
WANTED = {"weights": 0.01, "optimizer": 0.01, "peak": 0.10}
"""How far theory may be from what is measured; of the first two it leaves out padding alone."""


def compare(measured: Result) -> Result:
    """A row a case: bytes of each part, and what theory says of it."""
    rows = [_row(case, medians) for case, medians in measured_cases(measured)]
    return result_of(
        __file__,
        config={"of": measured.name, "measured_at": measured.commit},
        rows=rows,
        medians={part: errors_of(rows, f"{part}_error", wanted) for part, wanted in WANTED.items()},
        packages=("torch", "deepspeed"),
    )


def _row(case: Case, medians: dict[str, Any]) -> Row:
    config = case.config
    if "optimizer_bytes" not in medians:
        raise SystemExit(f"The result has no optimizer_bytes for {case.name}: measure it with this version of genrec.")
    option = predict_here(config)
    assert option is not None, "the case ran, so its micro-batches hold its windows"
    size = model_size(config, read_windows(config).catalogue)
    sharding = sharding_of(config, config.cluster.max_workers)
    theory = {
        "weights": sharding.weights(size.total, size.whole),
        "optimizer": sharding.optimizer(size.total, size.table_moments + size.other_moments),
        "peak": option.memory.total,
    }
    found = {part: float(medians[f"{part}_bytes"]["median"]) for part in theory}
    for of_parts in (found, theory):
        of_parts["rest"] = of_parts["peak"] - of_parts["weights"] - of_parts["optimizer"]
    stage = "none" if sharding.stage is None else sharding.stage
    row: Row = {"case": case.name, "workers": sharding.workers, "stage": stage, "num_weights": size.total}
    for part in PARTS:
        row |= {
            f"{part}_bytes": round(found[part]),
            f"{part}_theory_bytes": round(theory[part]),
            f"{part}_error": round(theory[part] / found[part] - 1, 4),
        }
    return row


def as_markdown(result: Result) -> str:
    """The table of the README: measured / theory in MiB, and what is kept in bytes a weight."""
    head = ["workers", "ZeRO", *PARTS, "weights and optimizer, bytes a weight"]
    lines = [f"| {' | '.join(head)} |", "|--:|--:|" + "--:|" * (len(PARTS) + 1)]
    for row in result.rows:
        pairs = {part: [float(row[f"{part}{end}"] or 0) for end in ("_bytes", "_theory_bytes")] for part in PARTS}
        cells = [f"{found / MIB:.0f} / {theory / MIB:.0f}" for found, theory in pairs.values()]
        kept = zip(pairs["weights"], pairs["optimizer"], strict=True)
        found, theory = (sum(two) / float(row["num_weights"] or 1) for two in kept)
        lines.append(f"| {row['workers']} | {row['stage']} | {' | '.join(cells)} | {found:.2f} / {theory:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compares, prints the table and the errors, and writes the JSON."""
    parser = table_options(__file__, __doc__)
    parser.set_defaults(json="benchmarks/out/zero-theory.json")  # the matrix of this name has zero.json
    arguments = parser.parse_args()
    result = compare(read_result(arguments.measured))
    tell(result, as_markdown(result), arguments)


if __name__ == "__main__":
    run_script(main)
