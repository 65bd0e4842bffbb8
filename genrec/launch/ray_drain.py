"""Tells Ray that this machine is about to go, and waits while its training workers save and leave.

    python -m genrec.launch.ray_drain --grace-s 100

Manifests run it before a pod is ended. Ray places nothing there any more, the workers save a checkpoint and end, and
the run goes on elsewhere from the step where it was (docs/operations.md). Linux only: it looks into /proc.
"""

import argparse
import re
import time
from collections.abc import Iterator
from pathlib import Path

WORKER = "ray::RayTrainWorker"
LOOK_S = 1.0


def processes(folder: Path = Path("/proc")) -> Iterator[str]:
    """The command line of every process of this machine (in a container: of the container), with spaces."""
    for path in folder.glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended


def nodes_here(commands: Iterator[str]) -> dict[str, str]:
    """The address of the cluster by the id of each Ray node on this machine, from the command lines of its raylets."""
    found = {}
    for command in commands:
        node = re.search(r"raylet/raylet .*--node_id=([0-9a-f]+)", command)
        address = re.search(r"--gcs-address=(\S+)", command)
        if node and address:
            found[node[1]] = address[1]
    return found


def drain(grace_s: float) -> str:
    """Asks Ray to drain the nodes of this machine, and waits up to `grace_s` until no worker trains here; in words."""
    nodes = nodes_here(processes())
    if not nodes:
        return "No Ray runs on this machine; there is nothing to drain."
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated import autoscaler_pb2

    started = time.monotonic()
    deadline_ms = int((time.time() + grace_s) * 1000)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    for node, address in nodes.items():
        GcsClient(address=address).drain_node(node, reason, "the machine is about to go", deadline_ms)
    while (left := num_workers(processes())) and time.monotonic() - started < grace_s:
        time.sleep(LOOK_S)
    return (
        f"Drained {len(nodes)} node; after {time.monotonic() - started:.0f} s, {left} training workers are left here."
    )


def num_workers(commands: Iterator[str]) -> int:
    """How many training workers there are."""
    return sum(command.startswith(WORKER) for command in commands)


def main() -> None:
    """Drains this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grace-s", type=float, default=100.0, help="seconds until the machine is gone")
    print(drain(parser.parse_args().grace_s), flush=True)


if __name__ == "__main__":
    main()
