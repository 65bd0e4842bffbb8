"""Workers' measurements become Ray's metrics, and the dashboard asks for those that there are."""

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from genrec.cluster import ray_metrics
from genrec.cluster.ray_metrics import COUNTERS, GAUGES, TAGS, RayMetrics, exported_names

DASHBOARD = Path(__file__).parents[3] / "launch" / "monitoring" / "genrec_dashboard.json"
LINE = {"step": 20, "steps": 10, "loss": 6.5, "events_per_s": 9e4, "data_wait_fraction": 0.01}


class Recorded:
    """In the place of Ray's Gauge and Counter: keeps what it is told."""

    told: ClassVar[list[tuple[str, float, dict[str, str]]]] = []

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description and tag_keys == TAGS
        self.name = name

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.told.append((self.name, value, tags))

    inc = set


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(ray_metrics, "Gauge", Recorded)
    monkeypatch.setattr(ray_metrics, "Counter", Recorded)
    monkeypatch.setattr(Recorded, "told", [])
    return Recorded.told


def test_a_line_sets_every_metric_with_run_and_rank(told: list[Any]) -> None:
    RayMetrics("walk", 3)(LINE)
    assert {name: value for name, value, _ in told} == {
        "genrec_step": 20,
        "genrec_steps": 10,
        "genrec_loss": 6.5,
        "genrec_events_per_s": 9e4,
        "genrec_data_wait_fraction": 0.01,
    }
    assert all(tags == {"run": "walk", "rank": "3"} for _, _, tags in told)


def test_the_metrics_are_those_of_a_line() -> None:
    assert {*GAUGES, *COUNTERS} == LINE.keys()


def test_ray_exports_them_under_these_names() -> None:
    from prometheus_client import REGISTRY, generate_latest
    from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder

    recorder = OpenTelemetryMetricRecorder()  # what the agent of a node does with what workers send
    tags = {"run": "walk", "rank": "0"}
    for name, text in GAUGES.values():
        recorder.register_gauge_metric(name, text)
        recorder.set_metric_value(name, tags, 1.0)
    for name, text in COUNTERS.values():
        recorder.register_counter_metric(name, text)
        recorder.set_metric_value(name, tags, 1.0)
    page = generate_latest(REGISTRY).decode()
    assert set(re.findall(r"^(ray_genrec_\w+)\{.*run=\"walk\"", page, re.MULTILINE)) == set(exported_names())


def test_the_dashboard_asks_for_what_is_exported() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for text in expressions for name in re.findall(r"\b(?:ray_)?genrec_\w+", text)}
    assert asked == set(exported_names())
    labels = {
        label
        for text in expressions
        for label in re.findall(r"by \((\w+)\)|\{(\w+)=", text)
        for label in label
        if label
    }
    assert labels <= set(TAGS)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_prometheus_reads_the_file_that_ray_writes_and_grafana_asks_prometheus() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    files = {
        name: (DASHBOARD.parent / f"{name}.yaml").read_text(encoding="utf-8") for name in ("prometheus", "grafana")
    }
    (job,) = yaml.safe_load(files["prometheus"])["scrape_configs"]
    ((found,),) = [entry["files"] for entry in job["file_sd_configs"]]
    assert Path(found).name == PROMETHEUS_SERVICE_DISCOVERY_FILE
    assert str(Path(found).parent) == "/tmp/ray"
    address = re.search(r"--web.listen-address=(\S+)", files["prometheus"])
    (source,) = yaml.safe_load(files["grafana"])["datasources"]
    assert address is not None
    assert source["url"] == f"http://{address[1]}"
    assert address[1].startswith("127.0.0.1:") and "http_addr=127.0.0.1" in files["grafana"], "not open to the network"
