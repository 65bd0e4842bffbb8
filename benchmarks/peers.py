"""genrec beside RecTools 0.19 on the same cores: throughput on MovieLens-1M, time to quality on Amazon Beauty.

python benchmarks/peers.py setup                             make RecTools' own virtual environment (benchmarks/out)
python benchmarks/peers.py run                               both parts
python benchmarks/peers.py run --only throughput --rounds 1 --seconds 20

The sides take turns (ours, theirs, ours, theirs, ...), so that a busy minute of the machine hits both. Every child has
a time-out; out of time and out of memory are rows, not ends. The data sets are read from $GENREC_DATA.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from genrec.bench.result import Result, Row, describe_machine, git_commit, installed_versions, write_result
from peer_process import (
    BENCHMARKS,
    OUT,
    ROOT,
    Finished,
    read_measurement,
    rectools_python,
    rectools_versions,
    run_child,
    setup_rectools,
)
from peer_protocol import THROUGHPUT_MODELS, model_to_json
from peer_quality import BEAUTY_CONFIG, beauty_model, score_vectors
from peer_tables import PEER, print_quality, print_throughput, quality_medians, throughput_medians

SIDES = ("genrec-loop", "genrec", PEER)
"""genrec-loop: genrec's model in a bare single-process PyTorch loop; genrec: `genrec train` on two Ray workers."""

PLAIN_WIDTH = 120  # of tables that go to a file
OUR_VERSIONS = ("genrec", "torch", "ray", "deepspeed", "numpy")
THEIR_VERSIONS = ("rectools", "torch", "pytorch-lightning", "numpy", "pandas")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when every measurement came to an end, else 1."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    if options.command == "setup":
        versions = setup_rectools()
        console.print("RecTools' environment: " + ", ".join(f"{name} {versions[name]}" for name in THEIR_VERSIONS))
        return 0
    if "GENREC_DATA" not in os.environ:
        console.print("GENREC_DATA must name the folder that holds ml-1m/ and amazon-beauty/; export it first.")
        return 2
    rectools_python()
    results = []
    if options.only in (None, "throughput"):
        results.append(measure_throughput(options, console))
        print_throughput(console, results[-1])
    if options.only in (None, "quality"):
        results.append(measure_quality(options, console))
        print_quality(console, results[-1])
    for result in results:
        path = Path(options.json) if len(results) == 1 else _suffixed(Path(options.json), result.name)
        write_result(path, result)
        console.print(f"Written: {path}")
    return 0 if all(row["status"] == "ok" for result in results for row in result.rows) else 1


def measure_throughput(options: argparse.Namespace, console: Console) -> Result:
    """Rounds of every chosen model on every chosen side."""
    rows: list[Row] = []
    for number in range(1, options.rounds + 1):
        for name in options.models:
            for side in options.sides:
                row = _throughput_row(options, name, side, number)
                rows.append(row)
                speed = f"{row['events_per_s']:,.0f} events/s" if row["status"] == "ok" else row["message"]
                console.print(f"round {number} {name} {side}: {row['status']}, {speed}")
    return _result("peers-throughput", options, rows, throughput_medians(rows))


def _throughput_row(options: argparse.Namespace, name: str, side: str, number: int) -> Row:
    out = OUT / "peers" / f"throughput_{name}_{side}_{number}.json"
    flags = ["--seconds", options.seconds, "--warmup-batches", options.warmup_batches, "--threads", options.threads]
    log = Path(os.environ["GENREC_DATA"]) / "ml-1m" / "ml-1m.txt.gz"
    flags += ["--log", log, "--layout", "pairs", "--model", model_to_json(THROUGHPUT_MODELS[name])]
    finished, measured = _run_side(options, side, "throughput", out, flags, options.timeout)
    return {
        "model": name,
        "side": side,
        "round": number,
        "status": finished.status,
        "message": finished.message,
        "wall_s": finished.wall_s,
        "load_average_1_min": describe_machine()["load_average_1_min"],
        **measured,
    }


def measure_quality(options: argparse.Namespace, console: Console) -> Result:
    """One training of each side on Beauty, and the curve of each."""
    rows: list[Row] = []
    for side in [side for side in options.sides if side != "genrec-loop"]:
        folder = OUT / "peers" / f"quality_{side}"
        log = Path(os.environ["GENREC_DATA"]) / "amazon-beauty" / "sequences.txt.gz"
        flags = ["--max-seconds", options.max_seconds, "--threads", options.threads, "--vectors", folder]
        flags += ["--every-epochs", options.every_epochs, "--log", log, "--layout", "lists"]
        flags += ["--model", model_to_json(beauty_model())]
        timeout_s = 4 * options.max_seconds + options.timeout
        finished, measured = _run_side(options, side, "quality", folder.with_suffix(".json"), flags, timeout_s)
        console.print(f"{side}: {finished.status} {finished.message}")
        ending: Row = {"side": side, "status": finished.status, "message": finished.message}
        points: list[dict[str, Any]] = measured.get("points", [])
        if side == PEER:
            points = [point | score_vectors(folder / point["vectors"], log) for point in points]
        if finished.status == "ok" and not points:
            ending |= {"status": "out-of-time", "message": f"no validation within {options.max_seconds:.0f} s"}
        rows += [ending | point for point in points] or [ending]
    return _result("peers-quality", options, rows, quality_medians(rows))


def _run_side(
    options: argparse.Namespace, side: str, what: str, out: Path, flags: list[Any], timeout_s: float
) -> tuple[Finished, dict[str, Any]]:
    """Runs a side's script; how it ended, and what it measured when it was ok."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    if side == PEER:
        command: list[Any] = [rectools_python(), BENCHMARKS / "peer_rectools.py", what]
    else:
        command = [sys.executable, BENCHMARKS / "peer_genrec.py", what, "--side", side]
    command += ["--out", out, *flags]
    finished = run_child(command, log=out.with_suffix(".log"), timeout_s=timeout_s, threads=options.threads)
    return finished, read_measurement(out) if finished.status == "ok" else {}


def _result(name: str, options: argparse.Namespace, rows: list[Row], medians: dict[str, Any]) -> Result:
    theirs = rectools_versions()
    versions = installed_versions(OUR_VERSIONS) | {f"{PEER}/{key}": theirs[key] for key in THEIR_VERSIONS}
    config = {key: value for key, value in vars(options).items() if key not in ("command", "json")}
    if name == "peers-throughput":
        config["models"] = [asdict(THROUGHPUT_MODELS[model]) for model in options.models]
    else:
        config["models"] = [asdict(beauty_model())]
        config["beauty_config"] = str(BEAUTY_CONFIG.relative_to(ROOT))
    return Result(name, config, rows, medians, versions, describe_machine(), git_commit(ROOT))


def _suffixed(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}-{name.removeprefix('peers-')}{path.suffix}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help="make RecTools' virtual environment; does nothing when it is there")
    run = commands.add_parser("run", help="measure both sides")
    run.add_argument("--only", choices=["throughput", "quality"])
    run.add_argument("--json", default=str(OUT / "peers.json"), help="where the result goes (two files for two parts)")
    run.add_argument("--models", nargs="+", choices=THROUGHPUT_MODELS, default=list(THROUGHPUT_MODELS))
    run.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    run.add_argument("--rounds", type=int, default=3, help="throughput readings of each model on each side")
    run.add_argument("--seconds", type=float, default=60, help="steady training seconds of one throughput reading")
    run.add_argument("--warmup-batches", type=int, default=5)
    run.add_argument("--max-seconds", type=float, default=3_600, help="training seconds of a quality curve")
    run.add_argument("--every-epochs", type=int, default=1, help="epochs between two points of RecTools' curve")
    run.add_argument("--timeout", type=float, default=900, help="wall seconds of one throughput reading at most")
    run.add_argument("--threads", type=int, default=2, help="torch threads of a side, over all its processes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
