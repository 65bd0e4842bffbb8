"""What a cluster is, and the sentence for one that will not do."""

import socket
import threading
from pathlib import Path

import pytest
from launch_fakes import FakeDashboard, running

from genrec.cluster.room import Machine
from genrec.config import config_from_dict
from genrec.errors import ConfigError, RunError
from genrec.launch.cluster_facts import check_size, check_versions, dashboard_of, read_facts

CONFIG = {
    "name": "a",
    "data": {"source": {"name": "synthetic"}, "prepared": "p"},
    "model": {"name": "sasrec", "dim": 16, "num_layers": 1, "num_heads": 1},
    "loss": {"name": "full-softmax"},
    "train": {"max_epochs": 1},
    "batch": {"micro_batches_per_step": 4},
    "cluster": {"workers": 4, "cpus_per_worker": 1},
}


def test_facts_of_a_cluster(dashboard: FakeDashboard) -> None:
    dashboard.machines = [(4.0, 0.0, {"zone": "a"}), (8.0, 2.0, {})]
    facts = read_facts(dashboard_of(dashboard.address + "/"))
    assert facts.machines == (Machine(4.0, 0.0, {"zone": "a"}), Machine(8.0, 2.0, {}))
    assert (facts.ray_version, facts.python_version, facts.autoscales) == ("2.60.0", "3.11.7", False)
    check_versions(facts)


def test_nobody_there_is_one_sentence() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RunError, match=rf"No Ray cluster answers at http://127.0.0.1:{port} .*refused.*--address"):
        read_facts(dashboard_of(f"127.0.0.1:{port}"))


def test_the_token_is_found_where_ray_finds_it(
    dashboard: FakeDashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dashboard.token = "right"
    with pytest.raises(RunError, match="wants a token, and none was found"):
        read_facts(dashboard_of(dashboard.address))
    own = tmp_path / "home-of-a-test" / ".ray" / "auth_token"
    own.parent.mkdir(parents=True)
    own.write_text("right\n")
    assert read_facts(dashboard_of(dashboard.address)).machines
    named = tmp_path / "token"
    named.write_text("wrong")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(named))
    with pytest.raises(RunError, match="refused the token"):
        read_facts(dashboard_of(dashboard.address))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    assert read_facts(dashboard_of(dashboard.address)).machines
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="does not exist"):
        dashboard_of(dashboard.address)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ray://host:10001", "not that of Ray itself"),
        ("http://user:word@host", "must not hold a password"),
        ("http://host:82a5", r"--address \(http://host:82a5\) must be the address"),
        ("http://host:99999", "must be the address of a Ray dashboard"),
        ("http://[host", "must be the address of a Ray dashboard"),
        ("http://", "must be the address of a Ray dashboard"),
    ],
)
def test_addresses_that_are_refused(address: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        dashboard_of(address)
    assert "word" not in str(raised.value).replace("password", "")


def test_a_wrong_address_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://host:10001")
    with pytest.raises(ConfigError, match=r"^RAY_ADDRESS \(ray://host:10001\) must be"):
        dashboard_of(None)


@pytest.mark.parametrize("token", ["two\nwords", "two words", "\u00fcber"])
def test_a_token_that_fits_no_header_is_refused_without_being_shown(
    token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    path.write_text(token, encoding="utf-8")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with pytest.raises(ConfigError, match=rf"{path} must hold a token and nothing else") as raised:
        dashboard_of(None)
    assert token.split()[-1] not in str(raised.value).replace("one word of", "")
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN must hold a token"):
        dashboard_of(None)


def test_a_token_does_not_follow_to_another_place(dashboard: FakeDashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    with running(FakeDashboard()) as other:
        dashboard.sends_to = other.address
        with pytest.raises(RunError, match=r"sends its callers elsewhere.*--address http://127.0.0.1"):
            dashboard_of(dashboard.address).get("/api/version")
        assert other.tokens == []
    assert dashboard.tokens == ["Bearer mine"]


def test_a_port_that_speaks_no_http_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1_000)
                connection.sendall(b"\x00\x00\x12\x04 no http\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(RunError, match="No Ray cluster answers at"):
            read_facts(dashboard_of(f"127.0.0.1:{server.getsockname()[1]}"))
        thread.join(10)


def test_json_of_something_else_is_one_sentence(dashboard: FakeDashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "answer", lambda path: {"version": "11.2"})
    with pytest.raises(RunError, match="answers, and not as the dashboard of a Ray cluster does"):
        read_facts(dashboard_of(dashboard.address))


def test_the_address_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dashboard_of(None).address == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # Ray's own port, no dashboard
    assert dashboard_of(None).address == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://ray.example.org/team/")
    assert dashboard_of(None).address == "https://ray.example.org/team"
    assert dashboard_of("head:8265").address == "http://head:8265"


def test_something_else_at_the_address(dashboard: FakeDashboard) -> None:
    with pytest.raises(RunError, match="HTTP 404: it is no Ray dashboard"):
        dashboard_of(dashboard.address + "/elsewhere").get("/api/version")


@pytest.mark.parametrize(
    ("ray_version", "python_version", "says"),
    [("2.59.1", "3.11.7", r"runs Ray 2.59.1, and genrec here has Ray 2.60"), ("2.60.9", "3.9.1", "runs Python 3.9.1")],
)
def test_other_versions_are_refused(dashboard: FakeDashboard, ray_version: str, python_version: str, says: str) -> None:
    dashboard.ray_version, dashboard.python_version = ray_version, python_version
    with pytest.raises(ConfigError, match=says):
        check_versions(read_facts(dashboard_of(dashboard.address)))


def test_a_cluster_that_is_too_small_is_refused_unless_it_may_grow(dashboard: FakeDashboard) -> None:
    config = config_from_dict(CONFIG)
    with pytest.raises(ConfigError, match=r"\(4 \* 1.0 = 4\) must leave 1 of the cluster's 4 CPUs"):
        check_size(config, read_facts(dashboard_of(dashboard.address)))
    elastic = config_from_dict({**CONFIG, "batch": {"micro_batches_per_step": 12}, "cluster": {"workers": [2, 4]}})
    assert check_size(elastic, read_facts(dashboard_of(dashboard.address))) is None
    waits = config_from_dict({**CONFIG, "placement": {"wait_s": 60}})
    assert "has no room yet" in str(check_size(waits, read_facts(dashboard_of(dashboard.address))))
    dashboard.node_types = ["head", "train"]
    assert "placement.wait_s=1800" in str(check_size(config, read_facts(dashboard_of(dashboard.address))))
