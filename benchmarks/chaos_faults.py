"""The faults of `chaos.py`: what can go wrong under a run, each done to the real thing, and when which one comes.

A fault does its harm at once. Some harm lasts (a full disk) and is lifted after some seconds, or as soon as the command
has ended: then somebody would have looked.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import psutil

from chaos_cluster import HEAD, Cluster
from chaos_machine import ChaosError, Volume
from genrec.run_dir import RunDir


class NotNow(Exception):  # it is no error: the fault is tried again a moment later
    """The fault has nothing to strike at this moment."""


class Harm(NamedTuple):
    """What a fault has done; `lift` undoes what lasts, after `lasts_s` seconds."""

    what: str
    lasts_s: float = 0.0
    lift: Callable[[], object] = lambda: None
    until_struck: bool = False
    """It lasts on until the run has stopped moving, or has written checkpoints in spite of it."""


@dataclass(frozen=True, slots=True)
class Target:
    """What there is to strike: the nodes, the disk, the run, and the command that somebody has started."""

    cluster: Cluster
    volume: Volume
    run: RunDir
    kill_command: Callable[[], None]

    def newest_checkpoint(self) -> Path | None:
        """The newest checkpoint that counts."""
        folders = sorted(self.run.checkpoints_path.glob("step_*"), reverse=True)
        return next((folder for folder in folders if is_complete(folder)), None)

    def checkpoint_step(self) -> int:
        """Where a run that died now would go on; 0 is the beginning."""
        newest = self.newest_checkpoint()
        return 0 if newest is None else int(newest.name.removeprefix("step_"))


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of every worker is there with its size; read from the files, without the code on trial."""
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        lists = [checkpoint / f"rank_{rank:05d}.json" for rank in range(state["workers"])]
        files = {name: entry for path in lists for name, entry in json.loads(path.read_text(encoding="utf-8")).items()}
        return all((checkpoint / name).stat().st_size == entry["num_bytes"] for name, entry in files.items())
    except (OSError, ValueError):
        return False  # still being written, or being deleted


Inject = Callable[[Target, Random], Harm]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault.

    It may throw a run back by `intervals` between checkpoints: two where it takes the newest away, or where the run
    goes on for a while with a checkpoint that cannot be written.
    """

    name: str
    inject: Inject
    intervals: int = 1
    needs_volume: bool = False


def kill_worker(target: Target, rng: Random) -> Harm:
    """SIGKILL to one training worker."""
    node, process = _some_worker(target, rng)
    process.kill()
    return Harm(f"SIGKILL to the worker on node {node}")


def stop_worker(target: Target, rng: Random) -> Harm:
    """SIGSTOP to one training worker, which nobody continues."""
    node, process = _some_worker(target, rng)
    process.suspend()
    return Harm(f"SIGSTOP to the worker on node {node}")


def kill_command(target: Target, rng: Random) -> Harm:
    """SIGKILL to `genrec train`."""
    target.kill_command()
    return Harm("SIGKILL to the command")


def kill_node(target: Target, rng: Random) -> Harm:
    """SIGKILL to a raylet and all that runs on its node; a new node comes a little later."""
    node, _ = _some_worker(target, rng)
    number = target.cluster.kill_node(node)
    lasts_s = rng.uniform(3, 12)
    return Harm(f"SIGKILL to the {number} processes of node {node}", lasts_s, lambda: target.cluster.start())


def restart_head(target: Target, rng: Random) -> Harm:
    """The head goes with the cluster's state (GCS); the cluster is made anew."""
    number = target.cluster.kill_node(HEAD)
    return Harm(f"SIGKILL to the {number} processes of the head", rng.uniform(3, 8), target.cluster.start)


def fill_disk(target: Target, rng: Random) -> Harm:
    """No space is left where the run directory is."""
    num_bytes, lasts_s = target.volume.fill(), rng.uniform(15, 40)
    return Harm(f"disk full ({num_bytes:,} bytes taken)", lasts_s, target.volume.empty, until_struck=True)


def refuse_uploads(target: Target, rng: Random) -> Harm:
    """Where checkpoints go, every write fails for some seconds."""
    folder, lasts_s = target.run.checkpoints_path, rng.uniform(5, 15)
    target.volume.refuse_writes(folder)
    return Harm(
        "the folder of the checkpoints read-only",
        lasts_s,
        lambda: target.volume.allow_writes(folder),
        until_struck=True,
    )


def cut_shard(target: Target, rng: Random) -> Harm:
    """Half a file of the newest checkpoint is lost, and then the run dies."""
    newest = _some_checkpoint(target)
    shards = sorted(path for path in newest.rglob("*") if path.is_file() and path.suffix == ".pt")
    if not shards:
        raise NotNow(f"{newest} has no shards")
    shard = rng.choice(shards)
    os.truncate(shard, shard.stat().st_size // 2)
    return Harm(f"{newest.name}/{shard.name} cut in half, then {_kill_something(target, rng)}")


def delete_checkpoint(target: Target, rng: Random) -> Harm:
    """The newest checkpoint is deleted, and then the run dies."""
    newest = _some_checkpoint(target)
    shutil.rmtree(newest)
    return Harm(f"{newest.name} deleted, then {_kill_something(target, rng)}")


KINDS = (
    Kind("worker killed", kill_worker),
    Kind("command killed", kill_command),
    Kind("node killed", kill_node),
    Kind("worker stopped", stop_worker),
    Kind("head restarted", restart_head),
    Kind("shard cut", cut_shard, intervals=2),
    Kind("checkpoint deleted", delete_checkpoint, intervals=2),
    Kind("disk full", fill_disk, needs_volume=True, intervals=2),
    Kind("upload refused", refuse_uploads, needs_volume=True, intervals=2),
)


class Planned(NamedTuple):
    """A fault that is to come: once the run has done `step` steps, and `delay_s` later."""

    step: int
    delay_s: float
    kind: Kind


def schedule(kinds: tuple[Kind, ...], num_faults: int, *, steps: int, interval: int, rng: Random) -> list[Planned]:
    """Faults in the order of their steps: every kind as often as the others, give or take one, in random order.

    The steps between the first two checkpoints and the last interval are cut into one stretch a fault; a fault comes at
    a random step of its stretch, but not within the last `interval + 5`, so that the run has a new checkpoint before
    the next one and cannot be starved. Raises ChaosError when the steps are too few for that.
    """
    first = 2 * interval + 5
    width = (steps - interval - first) // num_faults
    if width <= interval + 5:
        raise ChaosError(
            f"{num_faults} faults need more than {first + interval + num_faults * (interval + 6)} steps with a "
            f"checkpoint every {interval}, and the run has {steps}; take fewer faults or more steps."
        )
    rounds = [rng.sample(kinds, len(kinds)) for _ in range(-(-num_faults // len(kinds)))]
    order = [kind for one in rounds for kind in one][:num_faults]
    rng.shuffle(order)
    return [
        Planned(first + number * width + rng.randrange(width - interval - 5), rng.uniform(0, 1), kind)
        for number, kind in enumerate(order)
    ]


def _some_worker(target: Target, rng: Random) -> tuple[int, psutil.Process]:
    workers = target.cluster.train_workers()
    if not workers:
        raise NotNow("no worker runs")
    return rng.choice(workers)


def _some_checkpoint(target: Target) -> Path:
    newest = target.newest_checkpoint()
    if newest is None:
        raise NotNow("there is no checkpoint")
    return newest


def _kill_something(target: Target, rng: Random) -> str:
    """Kills a worker or the command, so that it matters what the newest checkpoint is like."""
    if rng.random() < 0.5 and target.cluster.train_workers():
        return kill_worker(target, rng).what
    return kill_command(target, rng).what
