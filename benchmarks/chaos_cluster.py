"""A Ray cluster of real `ray start` nodes on one machine, for `chaos.py`: node 0 is the head, the others train.

Each node is a set of processes that carry its mark, so a node can be killed as a whole, the way a machine goes.
"""

import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from chaos_machine import MARK, ChaosError, Network, kill_marked, marked_processes

ROOT = Path(__file__).resolve().parents[1]
HEAD = 0
HEAD_CPUS = 1
"""Room for Ray Data's tasks; a worker of configs/chaos.yaml does not fit, so workers are on the other nodes."""
NODE_CPUS = 2
OBJECT_STORE_BYTES = 160 * 2**20
START_TIMEOUT_S = 120
START_ATTEMPTS = 6
"""`ray start` gives a node 30 s to appear, which a busy machine may miss."""


class Cluster:
    """The nodes; `start` brings up those that are not there, and it can be called again after a fault."""

    def __init__(
        self, owner: int, network: Network, num_nodes: int, folder: Path, *, with_dashboard: bool = False
    ) -> None:
        """`num_nodes` counts the head; `folder` takes Ray's session. A cluster with a dashboard takes jobs."""
        self.owner = owner
        self.network = network
        self.num_nodes = num_nodes
        self._folder = folder / "ray"
        self._folder.mkdir()
        self._token = folder / "token"
        self._token.write_text(secrets.token_hex(32), encoding="utf-8")
        self._token.chmod(0o600)
        self._port = 6379 if network.missing is None else _free_port()
        self._dashboard_port = (8265 if network.missing is None else _free_port()) if with_dashboard else None

    @property
    def address(self) -> str:
        """What RAY_ADDRESS must be."""
        return f"{self.network.address(HEAD)}:{self._port}"

    @property
    def dashboard(self) -> str:
        """What `genrec submit --address` must be."""
        assert self._dashboard_port is not None, "made without a dashboard"
        return f"http://{self.network.address(HEAD)}:{self._dashboard_port}"

    def environment(self, place: str) -> dict[str, str]:
        """The environment of a process at `place`: the cluster's token, this checkout, and the mark."""
        values = {
            MARK: f"{self.owner}:{place}",
            "PYTHONPATH": str(ROOT),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        }
        if self.network.missing is None:
            # The host name leads gloo to an address outside the namespace, or to the loopback device.
            values["GLOO_SOCKET_IFNAME"] = Network.INTERFACE
            # No name server can be reached from there, and each name that torch looks up would wait 10 s for one.
            values["RES_OPTIONS"] = "timeout:1 attempts:1"
        return {**os.environ, **values}

    def start(self) -> None:
        """Starts the nodes that have no raylet; the head first, then the others."""
        missing = [node for node in range(self.num_nodes) if not self.is_up(node)]
        if HEAD in missing:
            # A new head is a new cluster, which nodes of the old one cannot join.
            self.stop()
            self.start_node(HEAD)
            missing = list(range(1, self.num_nodes))
        # One after another: nodes that start at the same moment take each other's ports and sockets.
        for node in missing:
            self.start_node(node)

    def start_node(self, node: int) -> None:
        """Starts one node; returns when the cluster knows it. Raises ChaosError when it does not come up."""
        role = (
            ["--head", f"--port={self._port}", *self._dashboard_options(), f"--temp-dir={self._folder}"]
            if node == HEAD
            else [f"--address={self.address}"]
        )
        command = [
            *self.network.inside(node), *self._with_own_session(node),
            str(Path(sys.executable).with_name("ray")), "start", *role,
            f"--node-ip-address={self.network.address(node)}",
            f"--num-cpus={HEAD_CPUS if node == HEAD else NODE_CPUS}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            "--dashboard-agent-listen-port=0", "--disable-usage-stats",
        ]  # fmt: skip
        environment = self.environment(place(node))
        output = ""
        for _ in range(START_ATTEMPTS):
            try:
                done = subprocess.run(
                    command, env=environment, cwd=self._folder, capture_output=True, text=True,
                    timeout=START_TIMEOUT_S, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                output = f"not done after {START_TIMEOUT_S} s"
            else:
                if done.returncode == 0:
                    return
                output = done.stdout + done.stderr
            self.kill_node(node)
        raise ChaosError(f"Node {node} did not start, {START_ATTEMPTS} times; Ray said last: {output.strip()[-500:]}")

    def _with_own_session(self, node: int) -> list[str]:
        """What to put before a command so that the node sees a session folder of its own below the head's path.

        Ray unpacks a job's files on each node, over what is there. In one folder for all nodes that would take the
        working directory away from under the job's command, which cannot happen to machines.
        """
        if node == HEAD or self._dashboard_port is None or self.network.missing is not None:
            return []
        own = self._folder.with_name(f"ray-{node}")
        own.mkdir(exist_ok=True)
        script = 'mount --bind "$0" "$1" && shift && exec "$@"'
        return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, str(own), str(self._folder)]

    def _dashboard_options(self) -> list[str]:
        if self._dashboard_port is None:
            return ["--include-dashboard=false"]
        return [f"--dashboard-host={self.network.address(HEAD)}", f"--dashboard-port={self._dashboard_port}"]

    def is_up(self, node: int) -> bool:
        """Whether the node's raylet runs."""
        return any(_name(process) == "raylet" for _, process in marked_processes(self.owner, place(node)))

    def kill_node(self, node: int) -> int:
        """SIGKILL to every process of a node, as when its machine goes; how many that were."""
        return kill_marked(self.owner, place(node))

    def train_workers(self) -> list[tuple[int, psutil.Process]]:
        """(node, process) of the training workers, in the order of their process ids."""
        found = [
            (node, process)
            for node in range(self.num_nodes)
            for _, process in marked_processes(self.owner, place(node))
            if _name(process).startswith("ray::RayTrainWo")
        ]
        return sorted(found, key=lambda entry: entry[1].pid)

    def stop(self) -> None:
        """Kills all nodes."""
        for node in range(self.num_nodes):
            self.kill_node(node)


def place(node: int) -> str:
    """The mark of a node's processes."""
    return f"node-{node}"


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""  # it has just ended


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
