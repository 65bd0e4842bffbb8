"""What checkpoints cost while training: none, asynchronous and synchronous ones, in turns.

    python benchmarks/checkpoint_cost.py configs/sasrec_ml1m.yaml --rounds 3 --interval 30 [section.field=value ...]

Each side is `genrec train` as a user runs it, for the same steps. A first, short run tells how long a step takes, so
that a checkpoint falls about every `--interval` seconds. The step time is wall time inside the training loop, with
everything in it that checkpoints make it wait for, and with whatever their uploads take from the same cores; start-up,
the checkpoint at the end and the final evaluation are not in it. `share_within_run` compares the steps after a save
with the later ones of the same run, which a machine whose speed drifts from run to run does not disturb. A run that
fails or hangs is a row that says so.
`train.checkpoint_dir=URI` measures another storage.
"""

import json
import os
import statistics
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

from genrec.bench.result import Result, Row, summarize
from genrec.config import load_config
from genrec.run_dir import load_saved_config, read_metrics
from genrec.training.checkpoint_store import CheckpointStore, store_of
from genrec_command import CommandFailed, prepare, trained
from script import finish, options_of, result_of, run_script

Mode = Literal["none", "async", "sync"]
MODES: tuple[Mode, ...] = ("none", "async", "sync")
NEVER = 1_000_000_000
CHECKPOINTS = 4
"""In a run: the last one has half an interval after it, so that its upload is inside the measured steps."""


class Span(NamedTuple):
    """How long a run trains, and how often it saves."""

    steps: int
    every_steps: int


def span_of(step_s: float, interval_s: float, logged: int) -> Span:
    """Steps of a run with `CHECKPOINTS` checkpoints about `interval_s` apart; both are multiples of a metric line."""
    every = max(1, round(interval_s / step_s / logged)) * logged
    return Span(CHECKPOINTS * every + max(1, every // 2 // logged) * logged, every)


def step_seconds(lines: list[dict[str, Any]]) -> float:
    """Wall seconds of a step between the first and the last metric line of a run."""
    first, last = lines[0], lines[-1]
    return float((last["elapsed_s"] - first["elapsed_s"]) / (last["step"] - first["step"]))


def share_within(lines: list[dict[str, Any]], saved: list[int], every: int) -> float | None:
    """What a checkpoint costs as a share of the time between two, from one run with a metric line for every step.

    The steps from one save to the next, against as many of the mean time of the interval's second half, when
    the upload is long done. Steps of one run, seconds apart: a machine that is slower in the next run does not matter.
    None when no interval is whole.
    """
    at = {int(line["step"]): float(line["elapsed_s"]) for line in lines}
    shares = []
    for step in saved:
        if step not in at or step + every not in at:
            continue
        took = [at[step + i + 1] - at[step + i] for i in range(every)]
        usual = statistics.mean(took[every // 2 :])
        shares.append(sum(took) / (every * usual) - 1)
    return statistics.median(shares) if shares else None


def train_once(file: str, overrides: list[str], mode: Mode, span: Span, options: list[str]) -> dict[str, float | None]:
    """Step time, checkpoints between the measured lines, what one costs, and its bytes, of one `genrec train`."""
    given = [
        *overrides, "train.max_epochs=null", "train.log_every_steps=1", f"train.max_steps={span.steps}",
        "train.evaluate_every_epochs=1000000", "train.patience=null",
        "train.keep_best=0", "evaluation.max_validation_users=512",
        f"train.checkpoint_every_steps={NEVER if mode == 'none' else span.every_steps}",
        f"train.checkpoint_upload={'async' if mode == 'none' else mode}",
    ]  # fmt: skip
    with trained(file, [*given, "--fresh", *options]) as run:
        lines = [record for record in read_metrics(run.metrics_path) if record["kind"] == "train"]
        store = store_of(load_saved_config(run.config_path), run)
        num_bytes = sum(store.sizes(store.names()[-1]).values())
        _delete(store)
    first, last = lines[0]["step"], lines[-1]["step"]
    saved = [] if mode == "none" else [s for s in range(span.every_steps, span.steps, span.every_steps)]
    return {
        "step_s": step_seconds(lines),
        "share_within_run": share_within(lines, saved, span.every_steps),
        "num_checkpoints": sum(first <= step < last for step in saved),
        "checkpoint_bytes": num_bytes,
    }


def _delete(store: CheckpointStore) -> None:
    for name in store.names():
        store.delete(name, "state.json")


def compare(file: str, overrides: list[str], rounds: int, interval_s: float, quick: bool) -> Result:
    """The three sides in turns, `rounds` times; ratios to the side without checkpoints are taken within a round."""
    prepare(file, overrides)
    config = load_config(file, overrides)
    logged = 8
    options = ["--launcher", "local", "cluster.workers=1"] if quick else []
    span = Span(5 * logged, 2 * logged)
    if not quick:
        short = train_once(file, overrides, "none", Span(8 * logged, NEVER), options)
        span = span_of(short["step_s"] or 0.0, interval_s, logged)
    rows: list[Row] = []
    for number in range(rounds):
        for mode in MODES:
            row: Row = {"round": number, "side": mode}
            try:
                row |= {"status": "ok", **train_once(file, overrides, mode, span, options)}
            except CommandFailed as error:
                row |= {"status": error.finished.status, "error": error.finished.message}
            rows.append({**row, "load_average_1_min": os.getloadavg()[0]})
            print(json.dumps(rows[-1]), flush=True)
    return result_of(
        __file__,
        config=config.model_dump(mode="json"),
        rows=rows,
        medians=medians_of(rows) | {"every_steps": span.every_steps, "steps": span.steps},
        packages=("torch", "ray", "deepspeed", "pyarrow"),
    )


def medians_of(rows: list[Row]) -> dict[str, Any]:
    """Step time without checkpoints, and the ratios to it of the other two sides, in rounds where all went well."""
    rows = [row for row in rows if row["status"] == "ok"]
    times = {(row["round"], row["side"]): float(row["step_s"] or 0) for row in rows}
    numbers = sorted({number for number, _ in times}, key=str)
    rounds = [number for number in numbers if all((number, mode) in times for mode in MODES)]
    ratios = {m: summarize(times[n, m] / times[n, "none"] for n in rounds) for m in MODES[1:]}
    base = summarize(times[n, "none"] for n in rounds)
    within = {mode: summarize(shares_of(rows, mode)) for mode in MODES[1:]}
    return {
        "step_s": asdict(base) if base else None,
        **{f"{mode}_ratio": asdict(ratio) if ratio else None for mode, ratio in ratios.items()},
        **{f"{mode}_share_within_run": asdict(share) if share else None for mode, share in within.items()},
        "checkpoint_bytes": max((int(row["checkpoint_bytes"] or 0) for row in rows), default=0),
    }


def shares_of(rows: list[Row], mode: Mode) -> list[float]:
    """What a checkpoint cost in the runs of one side that tell it."""
    found = [row.get("share_within_run") for row in rows if row["side"] == mode]
    return [float(share) for share in found if share is not None]


def main() -> None:
    """Measures what the command line asks for, prints the medians and writes the JSON."""
    parser = options_of(__file__, __doc__)
    parser.add_argument("config", nargs="?", default="configs/sasrec_ml1m.yaml")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--interval", type=float, default=30, help="seconds between two checkpoints, about")
    parser.add_argument("--quick", action="store_true", help="a few steps in one process: only shows that it runs")
    arguments = parser.parse_intermixed_args()
    result = compare(arguments.config, arguments.overrides, arguments.rounds, arguments.interval, arguments.quick)
    finish(result, arguments.json)


if __name__ == "__main__":
    run_script(main)
