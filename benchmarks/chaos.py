"""Breaks a training run again and again, and measures whether anything is lost.

    make chaos                                       # 22 faults in 2,000 steps, about half an hour on 2 cores
    make chaos CHAOS_ARGS=--quick                    # every kind once, in 600 steps
    python benchmarks/chaos.py --kinds "worker killed,node killed" --faults 4 --steps 400

A head and two nodes as real `ray start` processes, each with a network namespace and an address of its own, train
configs/chaos.yaml twice: once in peace, once with random faults. Namespaces and a small disk that can be filled need
root, iproute2 and util-linux; without them the nodes share an address, and the faults of the disk are left out.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, NoReturn

from chaos_cluster import ROOT, Cluster
from chaos_faults import KINDS, Kind, Planned, schedule
from chaos_judge import (
    Record,
    check_steps,
    check_windows,
    compare_metric,
    find_restarts,
    judge_faults,
    largest_difference,
    losses,
    summary_of,
)
from chaos_machine import ChaosError, Network, Volume, kill_marked, remove_leftovers, scratch_folder
from chaos_report import fault_rows, markdown
from chaos_run import RunLostError, SupervisedRun
from genrec.bench.result import Result, describe_machine, git_commit, installed_versions, write_result
from genrec.config import ExperimentConfig, load_config
from genrec.cpu_op import compile_cpu_op
from genrec.data.plan import make_plan
from genrec.data.stream import local_tables
from genrec.errors import GenrecError
from genrec.run_dir import RunDir, read_metrics
from genrec.training.window_log import trained_windows

CONFIG = "configs/chaos.yaml"
VOLUME_BYTES = 192 * 2**20
"""The two runs take about 40 MB: windows, metrics and up to four checkpoints each."""
PREPARE_TIMEOUT_S = 300
QUICK = {"faults": 9, "steps": 600}
FULL = {"faults": 22, "steps": 2_000}


class Setting(NamedTuple):
    """What is run: the same overrides for both runs, and the faults of the second."""

    overrides: list[str]
    config: ExperimentConfig
    planned: list[Planned]
    max_s: float


def run_both(setting: Setting, rng: Random, cluster: Cluster, volume: Volume, out: Path) -> tuple[SupervisedRun, str]:
    """The calm run, then the other, whose faults come back with a sentence when it did not come to its end.

    Both run directories are copied to `out`, and so is what the commands printed.
    """
    lost, run = "", None
    for name, planned in (("calm", []), ("chaos", setting.planned)):
        print(f"{name} run: {setting.config.train.max_steps} steps, {len(planned)} faults", flush=True)
        command = ["train", CONFIG, *setting.overrides, f"name={name}", f"runs_dir={volume.folder}"]
        log, started_at = out / f"{name}.log", time.monotonic()
        log.unlink(missing_ok=True)
        run = SupervisedRun(cluster, volume, command, RunDir(volume.folder / name), log, interval_of(setting.config))
        try:
            run.carry_out(planned, rng, setting.max_s)
        except RunLostError as error:
            lost = f"The {name} run was lost: {error}"
            print(lost, flush=True)
            cluster.stop()  # its workers may still be writing what is copied now
        if run.run.root.is_dir():
            shutil.copytree(run.run.root, out / name)
        print(f"{name} run: {time.monotonic() - started_at:.0f} s, {run.num_commands} commands", flush=True)
        if lost:
            break
    assert run is not None
    return run, lost


def interval_of(config: ExperimentConfig) -> int:
    """Steps between two checkpoints."""
    assert config.train.checkpoint_every_steps is not None, f"{CONFIG} says train.checkpoint_every_steps"
    return config.train.checkpoint_every_steps


def planned_windows(config: ExperimentConfig, end_step: int) -> Iterator[Record]:
    """What each micro-batch must be trained on, planned anew in this process."""
    columns = ["step", "part", "epoch", "users", "starts"]
    for table in local_tables(make_plan(config), start_step=0, end_step=end_step, rank=0, workers=1):
        yield from table.select(columns).to_pylist()


def judge(setting: Setting, run: SupervisedRun, lost: str, out: Path, setup: Record) -> Result:
    """The verdict, from the copies of both run directories."""
    config = setting.config
    end_step = config.train.max_steps
    interval = interval_of(config)
    assert end_step is not None
    calm, chaos = RunDir(out / "calm"), RunDir(out / "chaos")
    problems = [lost] if lost else []
    medians: dict[str, Any] = {"setup": setup, "interval": interval, "end_step": end_step}
    rows = []
    if chaos.metrics_path.is_file():
        records = read_metrics(chaos.metrics_path)
        results = judge_faults(run.faults, records, interval)
        rows = fault_rows(results)
        medians |= summary_of(results)
        medians["steps_trained"] = sum(record["kind"] == "train" for record in records)
        medians["restarts_in_all"] = len(find_restarts(records))
        problems += check_steps(records, end_step)
        problems += check_windows(trained_windows(chaos), planned_windows(config, end_step))
        problems += _fault_problems(medians, len(setting.planned))
    if chaos.evaluation_path.is_file() and calm.evaluation_path.is_file():
        metric = config.evaluation.metric
        ours, theirs = (json.loads(run.evaluation_path.read_text("utf-8"))["test"] for run in (calm, chaos))
        medians["metric"] = {"name": metric, **compare_metric(ours, theirs, metric)}
        difference, step = largest_difference(losses(read_metrics(calm.metrics_path)), losses(records))
        medians["loss"] = {"largest_relative_difference": difference, "at_step": step}
        if not medians["metric"]["within"]:
            problems.append(f"{metric} is more than a standard error from the calm run's: {medians['metric']}")
    else:
        problems.append("the run has no final metric")
    medians["problems"] = problems
    return Result(
        name="chaos",
        config=config.model_dump(mode="json"),
        rows=rows,
        medians=medians,
        versions=installed_versions(("torch", "ray", "deepspeed", "pyarrow")),
        machine=describe_machine(),
        commit=git_commit(ROOT),
    )


def _fault_problems(figures: dict[str, Any], num_planned: int) -> list[str]:
    found = []
    if figures["faults"] < num_planned:
        found.append(f"only {figures['faults']} of {num_planned} faults came")
    if figures["survived"] < figures["faults"]:
        found.append(f"{figures['faults'] - figures['survived']} faults were not survived without help")
    if figures["beyond_allowed"]:
        found.append(f"{figures['beyond_allowed']} faults cost more steps than allowed")
    return found


def chaos(arguments: argparse.Namespace) -> Result:
    """Makes the cluster and the volume, runs both, takes everything away again, and judges."""
    remove_leftovers()
    owner, out = os.getpid(), arguments.json.parent / "chaos"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with ExitStack() as stack:
        scratch = scratch_folder(owner)
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        network = Network(owner, arguments.nodes + 1, wanted=not arguments.one_address)
        stack.callback(network.remove)
        volume = Volume(owner, scratch / "volume", VOLUME_BYTES)
        stack.callback(volume.remove)
        stack.callback(kill_marked, owner)
        kinds = _possible_kinds(arguments.kinds, volume)
        setting = _setting(arguments, kinds)
        for what, missing in (("network namespaces", network.missing), ("a disk of its own", volume.missing)):
            print(f"{what}: {f'no, because {missing}' if missing else 'yes'}", flush=True)
        cluster = Cluster(owner, network, arguments.nodes + 1, scratch)
        _prepare(setting.overrides, cluster)
        cluster.start()
        run, lost = run_both(setting, Random(arguments.seed + 1), cluster, volume, out)
        left_out = sorted(kind.name for kind in arguments.kinds if kind not in kinds)
    setup: Record = {
        "nodes": arguments.nodes + 1,
        "seed": arguments.seed,
        "namespaces": network.missing or True,
        "volume": volume.missing or True,
        "faults_left_out": left_out,
        "commands": run.num_commands,
    }
    return judge(setting, run, lost, out, setup)


def _setting(arguments: argparse.Namespace, kinds: tuple[Kind, ...]) -> Setting:
    overrides = [*arguments.overrides, f"train.max_steps={arguments.steps}"]
    config = load_config(ROOT / CONFIG, overrides)
    planned = schedule(
        kinds, arguments.faults, steps=arguments.steps, interval=interval_of(config), rng=Random(arguments.seed)
    )
    return Setting(overrides, config, planned, arguments.max_minutes * 60)


def _possible_kinds(kinds: Sequence[Kind], volume: Volume) -> tuple[Kind, ...]:
    return tuple(kind for kind in kinds if volume.missing is None or not kind.needs_volume)


def _prepare(overrides: list[str], cluster: Cluster) -> None:
    compile_cpu_op()  # a minute once, which would look like a run that stands still
    command = [str(Path(sys.executable).with_name("genrec")), "prepare", CONFIG, *overrides]
    environment = cluster.environment("prepare")
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=PREPARE_TIMEOUT_S)


def _kinds(text: str) -> tuple[Kind, ...]:
    names = {kind.name: kind for kind in KINDS}
    wanted = [name.strip() for name in text.split(",")]
    if unknown := [name for name in wanted if name not in names]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of: {', '.join(names)}")
    return tuple(names[name] for name in wanted)


def _leave(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> None:
    """Runs what the command line asks for, prints the table and writes the JSON; exit code 1 when anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help=f"section.field=value on top of {CONFIG}")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK['faults']} faults in {QUICK['steps']} steps")
    parser.add_argument("--faults", type=int, help=f"default {FULL['faults']}")
    parser.add_argument("--steps", type=int, help=f"default {FULL['steps']:,}")
    parser.add_argument("--kinds", type=_kinds, default=KINDS, help="kinds of faults, with commas between them")
    parser.add_argument("--seed", type=int, default=1, help="of the faults")
    parser.add_argument("--nodes", type=int, default=2, help="nodes besides the head")
    parser.add_argument("--one-address", action="store_true", help="no namespaces, even where they can be made")
    parser.add_argument("--max-minutes", type=float, default=60, help="of each of the two runs")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "out" / "chaos.json")
    arguments = parser.parse_intermixed_args()
    size = QUICK if arguments.quick else FULL
    arguments.faults = arguments.faults or size["faults"]
    arguments.steps = arguments.steps or size["steps"]
    signal.signal(signal.SIGTERM, _leave)
    try:
        result = chaos(arguments)
    except KeyboardInterrupt:
        sys.exit("Interrupted: the cluster, its network and its disk are taken away; there is no result.")
    except (ChaosError, GenrecError) as error:
        sys.exit(f"Error: {error}")
    write_result(arguments.json, result)
    text = markdown(result)
    arguments.json.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    sys.exit(1 if result.medians["problems"] else 0)


if __name__ == "__main__":
    main()
