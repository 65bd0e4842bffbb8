"""Which Ray nodes are on this machine, from the command lines of its processes."""

from genrec.launch.ray_drain import drain, nodes_here, num_workers, processes

RAYLET = "/opt/ray/core/src/ray/raylet/raylet --raylet_socket_name=/s --node_id=0ab1 --gcs-address=10.0.0.1:6379 --x=1"
AGENT = "/usr/bin/python dashboard/agent.py --gcs-address=10.0.0.1:6379 --node-id=0ab1"


def test_nodes_are_found_by_their_raylets() -> None:
    assert nodes_here(iter([AGENT, RAYLET, "bash", "raylet/raylet --node_id=0f"])) == {"0ab1": "10.0.0.1:6379"}
    assert nodes_here(iter([AGENT])) == {}


def test_training_workers_are_counted_by_their_titles() -> None:
    assert num_workers(iter(["ray::RayTrainWorker.execute", "ray::IDLE", "grep ray::RayTrainWorker"])) == 1


def test_processes_of_this_machine_are_seen() -> None:
    assert any("pytest" in command or "python" in command for command in processes())


def test_without_ray_there_is_nothing_to_drain(monkeypatch) -> None:
    monkeypatch.setattr("genrec.launch.ray_drain.processes", lambda: iter(["bash"]))
    assert drain(1.0) == "No Ray runs on this machine; there is nothing to drain."
