"""Time from the command to the first step, by phase, as the `start` line of metrics.jsonl tells it.

    python benchmarks/startup.py configs/quickstart.yaml [--launchers ray local] [--rounds 3] [section.field=value ...]

The data set is prepared before. Each round runs `genrec train` for one step with each launcher, and leaves nothing
behind. `process` is from the command to a worker's first line (Ray and its workers start in it), `model` and `engine`
build those, `first_step` waits for the first micro-batch (`first_batch_s`) and trains it. A start that fails or hangs
is a row that says so.
"""

import json
import os
from dataclasses import asdict
from typing import Any

from genrec.bench.result import Result, Row, summarize
from genrec.run_dir import read_metrics
from genrec_command import CommandFailed, prepare, trained
from script import finish, options_of, result_of, run_script

TIMEOUT_S = 600
ONE_STEP = ("train.max_epochs=null", "train.max_steps=1", "train.patience=null", "evaluation.max_validation_users=64")
ALONE = ("cluster.workers=1",)
"""The local launcher is one process here."""


def start_once(file: str, overrides: list[str], launcher: str) -> Row:
    """Status, and seconds of a run's phases until its first step."""
    words = [*overrides, "--launcher", launcher, *ONE_STEP, *(ALONE if launcher == "local" else ())]
    try:
        with trained(file, words, timeout_s=TIMEOUT_S) as run:
            return {"status": "ok", **phases_of(read_metrics(run.metrics_path))}
    except CommandFailed as error:
        return {"status": error.finished.status, "error": error.finished.message}


def phases_of(records: list[dict[str, Any]]) -> Row:
    """Columns of a run's only `start` line."""
    (start,) = [record for record in records if record["kind"] == "start"]
    phases = {f"{phase}_s": seconds for phase, seconds in start["startup"].items()}
    row: Row = {"workers": start["workers"], "seconds_to_first_step": start["seconds_to_first_step"], **phases}
    return {**row, "first_batch_s": start["first_batch_s"]}


def summarize_rows(rows: list[Row]) -> dict[str, Any]:
    """Median and spread of every phase, by launcher, over the starts that went well."""
    medians: dict[str, Any] = {}
    good = [row for row in rows if row["status"] == "ok"]
    for launcher in dict.fromkeys(str(row["launcher"]) for row in good):
        mine = [row for row in good if row["launcher"] == launcher]
        columns = [name for name in mine[0] if name.endswith("_s") or name == "seconds_to_first_step"]
        found = {name: summarize(float(row[name] or 0) for row in mine) for name in columns}
        medians[launcher] = {name: asdict(summary) for name, summary in found.items() if summary is not None}
    return medians


def measure(file: str, overrides: list[str], launchers: list[str], rounds: int) -> Result:
    """Every launcher in turn, `rounds` times."""
    prepare(file, overrides)
    rows: list[Row] = []
    for number in range(rounds):
        for launcher in launchers:
            row = start_once(file, overrides, launcher)
            rows.append({"launcher": launcher, "round": number, **row, "load_average_1_min": os.getloadavg()[0]})
            print(json.dumps(rows[-1]), flush=True)
    return result_of(
        __file__,
        config={"file": file, "overrides": overrides, "rounds": rounds},
        rows=rows,
        medians=summarize_rows(rows),
        packages=("genrec", "torch", "deepspeed", "ray"),
    )


def main() -> None:
    """Measures what the command line asks for, prints the medians and writes the JSON."""
    parser = options_of(__file__, __doc__)
    parser.add_argument("file", nargs="?", default="configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--launchers", nargs="+", choices=["ray", "local"], default=["ray", "local"])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    result = measure(arguments.file, arguments.overrides, arguments.launchers, arguments.rounds)
    finish(result, arguments.json)


if __name__ == "__main__":
    run_script(main)
