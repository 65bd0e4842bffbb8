"""What Ray Train, Ray Data and DeepSpeed cost: the real trainer against bare PyTorch, alone and under torchrun.

    python benchmarks/overhead.py configs/sasrec_ml1m.yaml --rounds 3 --seconds 30 [section.field=value ...]

`bare` is one process with all the cores' threads, `torchrun` is `cluster.workers` processes with a
DistributedDataParallel over gloo, both over the config's own micro-batches in memory (bare_loop.py). `trainer` is
`genrec train` as a user runs it. They take turns, and ratios are taken within a round. `--launcher local` starts the
trainer with torchrun and without Ray: what is left is DeepSpeed, genrec's loop and its in-process reader.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from genrec.bench.result import Result, Row, summarize
from genrec.config import load_config
from genrec.run_dir import read_metrics
from genrec_command import TIMEOUT_S, CommandFailed, prepare, run_command, torchrun, trained
from script import finish, options_of, result_of, run_script

SIDES = ("bare", "torchrun", "trainer")
START_S = 600.0
"""What a side may take beyond the seconds that it measures."""


def loop(file: str, overrides: Sequence[str], seconds: float, workers: int | None) -> dict[str, float]:
    """What `bare_loop.py` reads, in one process or in `workers` that torchrun starts; raises CommandFailed."""
    script = [str(Path(__file__).with_name("bare_loop.py")), file, *overrides, "--seconds", str(seconds)]
    command = [sys.executable, *script] if workers is None else torchrun(workers, *script)
    said = run_command(command, timeout_s=seconds + START_S).splitlines()
    found: dict[str, float] = json.loads(next(line for line in reversed(said) if line.startswith("{")))
    return found


def trainer(file: str, overrides: list[str], seconds: float, expected: float, launcher: str) -> dict[str, float]:
    """`train_steps` for about as many steps as take `seconds` at `expected` events a second."""
    config = load_config(file, overrides)
    logged = config.train.log_every_steps
    steps = max(4 * logged, round(seconds * expected / config.batch.tokens_per_step / logged) * logged)
    workers = config.cluster.max_workers if launcher == "local" else None
    return train_steps(file, overrides, steps, local_workers=workers, timeout_s=4 * seconds + START_S)


def train_steps(
    file: str,
    overrides: list[str],
    steps: int,
    *,
    local_workers: int | None = None,
    timeout_s: float = TIMEOUT_S,
) -> dict[str, float]:
    """Events a second of `genrec train`, its data wait, and the time to its first step; raises CommandFailed."""
    words = [
        *overrides, "train.max_epochs=null", f"train.max_steps={steps}", "train.evaluate_every_epochs=1000000",
        "train.patience=null", "evaluation.max_validation_users=512",
    ]  # fmt: skip
    with trained(file, words, local_workers=local_workers, timeout_s=timeout_s) as run:
        records = read_metrics(run.metrics_path)
    lines = [record for record in records if record["kind"] == "train"][1:]
    (start,) = [record for record in records if record["kind"] == "start"]
    return {
        "events_per_s": len(lines) / sum(1 / line["events_per_s"] for line in lines),
        "data_wait_fraction": mean(line["data_wait_fraction"] for line in lines),
        "seconds_to_first_step": start["seconds_to_first_step"],
        **{f"startup_{phase}_s": value for phase, value in start["startup"].items()},
    }


def compare(file: str, overrides: list[str], rounds: int, seconds: float, launcher: str) -> Result:
    """The three sides in turn, `rounds` times. A side that fails or hangs is a row that says so."""
    prepare(file, overrides)
    config = load_config(file, overrides)
    workers = config.cluster.max_workers
    rows: list[Row] = []
    for number in range(rounds):
        for side in SIDES:
            row: Row = {"round": number, "side": side, "workers": 1 if side == "bare" else workers}
            try:
                if side == "trainer":
                    expected = max(float(other.get("events_per_s") or 0) for other in rows)
                    row |= {"launcher": launcher, **trainer(file, overrides, seconds, expected, launcher)}
                else:
                    row |= loop(file, overrides, seconds, None if side == "bare" else workers)
                row["status"] = "ok"
            except CommandFailed as error:
                row |= {"status": error.finished.status, "error": error.finished.message}
            rows.append({**row, "load_average_1_min": round(os.getloadavg()[0], 2)})
            print(json.dumps(rows[-1]), flush=True)
    return result_of(
        __file__,
        config=config.model_dump(mode="json") | {"launcher": launcher, "seconds": seconds, "rounds": rounds},
        rows=rows,
        medians=medians_of(rows),
        packages=("torch", "ray", "deepspeed", "pyarrow"),
    )


def medians_of(rows: list[Row]) -> dict[str, Any]:
    """Median and spread of each side's events a second, of the trainer's ratio to the others, and of what it tells.

    A ratio is of two sides in the same round, so that a machine whose speed drifts does not matter.
    """
    ok = {(row["round"], str(row["side"])): row for row in rows if row["status"] == "ok"}

    def of_side(side: str, name: str) -> list[float]:
        return [float(row[name] or 0) for (_, other), row in ok.items() if other == side]

    def ratios(over: str) -> list[float]:
        both = [
            (ok[number, "trainer"], ok[number, over])
            for number, side in ok
            if side == "trainer" and (number, over) in ok
        ]
        return [float(mine["events_per_s"] or 0) / float(other["events_per_s"] or 1) for mine, other in both]

    found = {f"{side}_events_per_s": summarize(of_side(side, "events_per_s")) for side in SIDES}
    found |= {f"trainer_over_{side}": summarize(ratios(side)) for side in SIDES if side != "trainer"}
    found |= {name: summarize(of_side("trainer", name)) for name in ("data_wait_fraction", "seconds_to_first_step")}
    return {name: asdict(summary) for name, summary in found.items() if summary is not None}


def main() -> None:
    """Measures what the command line asks for, prints the medians and writes the JSON."""
    parser = options_of(__file__, __doc__)
    parser.add_argument("config", nargs="?", default="configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30, help="that a side is measured in a round")
    parser.add_argument("--launcher", choices=["ray", "local"], default="ray", help="of the trainer")
    arguments = parser.parse_intermixed_args()
    asked = (arguments.rounds, arguments.seconds, arguments.launcher)
    result = compare(arguments.config, arguments.overrides, *asked)
    finish(result, arguments.json)


if __name__ == "__main__":
    run_script(main)
