"""What a sweep finds, what early stopping saves, and what a sweep costs besides its trials.

    python benchmarks/sweeps.py --trials 16 [--folder FOLDER]

On the synthetic log, with two workers a trial: a random search and an ASHA over the same space with the same seed, so
over the same trials. The space has a planted good region: learning rates from far too small to good ones, while the
base has a bad one. Then the best config and the base are trained again with fresh seeds. `FOLDER` keeps the sweeps, and
a command that was killed goes on.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from genrec.bench.result import Row, write_result
from genrec.reporting.sweep_record import SweepRecord, read_record
from genrec.reporting.sweep_sections import verdict
from script import result_of, run_script

TIMEOUT_S = 6 * 3_600

BASE: dict[str, Any] = {
    "name": "planted",
    "data": {"source": {"name": "synthetic", "num_events": 60_000, "num_items": 500}, "prepared": "prepared/planted"},
    "sequence": {"max_length": 40},
    "batch": {"tokens_per_step": 2_048, "micro_batches_per_step": 2, "steps_per_block": 8},
    "model": {"name": "sasrec", "dim": 16, "num_layers": 1, "num_heads": 1, "dropout": 0.1},
    "loss": {"name": "full-softmax"},
    "optimizer": {"lr": 0.0001},
    "train": {"max_epochs": 27, "log_every_steps": 5},
    "evaluation": {"ks": [1, 10], "filter_seen": False},
    "cluster": {"workers": 2, "cpus_per_worker": 0.5},
}

SPACE = {
    "optimizer.lr": {"log_uniform": [0.00001, 0.03]},
    "model.dim": {"choice": [8, 16, 32]},
    "model.dropout": {"uniform": [0.0, 0.6]},
}

SCHEDULERS: dict[str, dict[str, Any]] = {
    "random": {"name": "none"},
    "asha": {"name": "asha", "grace_epochs": 1, "reduction": 3},
}


def write_files(folder: Path, trials: int) -> None:
    """The base config and both sweeps."""
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE, sort_keys=False), encoding="utf-8")
    for name, scheduler in SCHEDULERS.items():
        sweep = {"name": name, "base": "base.yaml", "space": SPACE, "metric": "ndcg@10", "seed": 1}
        values = sweep | {"scheduler": scheduler, "budget": {"trials": trials}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def tune(folder: Path, *arguments: str) -> None:
    """Runs the command to its end; what it prints goes to this process's output."""
    command = [str(Path(sys.executable).with_name("genrec")), "tune", *arguments]
    subprocess.run(command, cwd=folder, check=True, timeout=TIMEOUT_S)


def worker_seconds_to(record: SweepRecord, value: float) -> float | None:
    """Worker seconds that a sweep had spent when a trial first reached `value`, trials counted in their order.

    A trial's cost is spread evenly over its epochs. None where none reached it.
    """
    spent = 0.0
    for trial in record.trials:
        progress = trial["progress"]
        for entry in progress["history"]:
            if record.sign * entry[record.metric] >= record.sign * value:
                return spent + float(progress["worker_seconds"]) * entry["epoch"] / max(progress["epoch"], 1e-9)
        spent += float(progress["worker_seconds"])
    return None


def measured(name: str, record: SweepRecord) -> Row:
    """One sweep on one line."""
    states = [trial["state"] for trial in record.trials]
    best = record.ranked[0]
    return {
        "sweep": name,
        "trials": len(states),
        "stopped": states.count("stopped"),
        "best": best["best"][record.metric],
        "best_trial": best["number"],
        "seconds": round(record.seconds, 1),
        "worker_seconds": round(record.worker_seconds, 1),
        "overhead": None if record.overhead is None else round(record.overhead, 4),
    }


def main() -> None:
    """Runs both sweeps and the retraining, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3, help="fresh seeds of the retraining")
    parser.add_argument("--folder", type=Path, help="where the sweeps are kept; default: a temporary folder")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/out/sweeps.json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_files(folder, given.trials)
        for name in SCHEDULERS:
            tune(folder, f"{name}.yaml")
        tune(folder, "random.yaml", "--retrain-best", "1", "--retrain-seeds", str(given.seeds))
        records = {name: read_record(folder / "sweeps" / name) for name in SCHEDULERS}
    random_best = records["random"].ranked[0]["best"]["ndcg@10"]
    to_best = {name: worker_seconds_to(record, random_best) for name, record in records.items()}
    result = result_of(
        __file__,
        config={"base": BASE, "space": SPACE, "schedulers": SCHEDULERS, "trials": given.trials, "seeds": given.seeds},
        rows=[measured(name, record) for name, record in records.items()],
        medians={
            "random_best": random_best,
            "worker_seconds_to_random_best": to_best,
            "asha_share_of_all_worker_seconds": records["asha"].worker_seconds / records["random"].worker_seconds,
            "retrained": verdict(records["random"]),
        },
        packages=("ray", "torch", "deepspeed", "optuna"),
    )
    write_result(given.output, result)
    print(json.dumps({"rows": result.rows, **result.medians}, indent=1))


if __name__ == "__main__":
    run_script(main)
