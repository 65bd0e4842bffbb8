"""What each worker measures, as Ray's own metrics: Ray exports them for Prometheus, as `ray_` and the name."""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

TAGS = ("run", "rank")

GAUGES = {
    "step": ("genrec_step", "steps that are done"),
    "loss": ("genrec_loss", "training loss since the last line, of all workers"),
    "events_per_s": ("genrec_events_per_s", "targets trained per second, of all workers"),
    "data_wait_fraction": ("genrec_data_wait_fraction", "share of its time that this worker has waited for data"),
}
COUNTERS = {"steps": ("genrec_steps", "steps of this process, those that were trained again too")}


class RayMetrics:
    """Gauges and counters of one worker of one run; called with a line of measurements."""

    def __init__(self, run: str, rank: int) -> None:
        self._tags = {"run": run, "rank": str(rank)}
        self._gauges = {key: Gauge(name, text, tag_keys=TAGS) for key, (name, text) in GAUGES.items()}
        self._counters = {key: Counter(name, text, tag_keys=TAGS) for key, (name, text) in COUNTERS.items()}

    def __call__(self, values: Mapping[str, float]) -> None:
        """Sets every gauge and raises every counter by what the line says; see `WorkerContext.measure`."""
        for key, gauge in self._gauges.items():
            gauge.set(values[key], tags=self._tags)
        for key, counter in self._counters.items():
            if values[key]:
                counter.inc(values[key], tags=self._tags)


def exported_names() -> list[str]:
    """The names under which Prometheus finds them; it adds `_total` to what is counted."""
    return [f"ray_{name}" for name, _ in GAUGES.values()] + [f"ray_{name}_total" for name, _ in COUNTERS.values()]
