"""What each section of a run's page says, as text and rows; the template only lays them out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from genrec.config import ExperimentConfig
from genrec.reporting import formats, tables
from genrec.reporting.history import History, metric_values

MAX_VALIDATION_ROWS = 60
MAX_START_ROWS = 60
MAX_PHASE_COLUMNS = 4


def summary(config: ExperimentConfig, history: History) -> str:
    """The run in one line: model, loss, log, engine, workers."""
    fewest, most = config.cluster.min_workers, config.cluster.max_workers
    planned = str(fewest) if fewest == most else f"{fewest} to {most}"
    workers = str((history.starts[-1].workers if history.starts else None) or planned)
    engine = f"DeepSpeed ZeRO-{config.engine.zero_stage}" if config.engine.name == "deepspeed" else "plain PyTorch"
    products = config.engine.matmul_precision
    precision = config.engine.precision + ("" if products == "highest" else f" (products at {products})")
    parts = (
        config.model.name,
        config.loss.name.replace("-", " "),
        f"{config.data.source.name} log",
        f"{engine}, {precision}",
        f"{workers} worker{'s' if workers != '1' else ''}",
    )
    return " · ".join(parts)


def state(history: History, *, finished: bool) -> str:
    """How far the run is, and when it last said something."""
    epoch = history.last("epoch")
    text = f"Step {history.last_step:,}"
    text += "" if epoch is None else f", epoch {formats.number(epoch, 3)}"
    text += f"; last record {formats.moment(history.last_time_s)}." if math.isfinite(history.last_time_s) else "."
    return text if finished else f"{text} There is no test result yet; this page shows what is recorded so far."


def loss_alerts(bad_steps: Sequence[int]) -> list[str]:
    """A warning when the loss was not finite at `bad_steps`."""
    if not bad_steps:
        return []
    lines = f"{len(bad_steps):,} log line{'s' if len(bad_steps) != 1 else ''}"
    return [
        f"The loss is not a finite number in {lines}, first at step {bad_steps[0]:,}; the usual mend is a lower "
        "`optimizer.lr`, or `optimizer.gradient_clipping=1`."
    ]


def cautions(history: History) -> list[str]:
    """What the run's last start said of settings that are seldom meant."""
    return list(history.starts[-1].cautions) if history.starts else []


def key_figures(history: History, evaluation: Mapping[str, Mapping[str, Any]], metric: str) -> list[tables.Row]:
    """The handful of numbers at the top of the page; the metric that chose the weights is marked."""
    figures = _quality_figures(history, evaluation, metric)
    elapsed, rate = history.last("elapsed_s"), history.median("events_per_s")
    wait, memory = history.median("data_wait_fraction"), history.largest("memory_bytes")
    for name, value, text, hint in (
        ("Training time", elapsed, formats.seconds(elapsed), f"{history.last_step:,} steps"),
        ("Throughput", rate, formats.count(rate), "events per second"),
        ("Data wait", wait, formats.percent(wait), "of step time"),
        ("Peak memory", memory, formats.num_bytes(memory), "first worker"),
    ):
        if value is not None:
            figures.append(tables.Row(name, text, hint))
    return figures


def _quality_figures(history: History, evaluation: Mapping[str, Mapping[str, Any]], metric: str) -> list[tables.Row]:
    """The deciding metric and the hit rate at its cut-off on test; before there is a test, the best validation."""
    if "test" in evaluation:
        values = metric_values(evaluation["test"].get("metrics"))
        baseline = metric_values(evaluation["test"].get("popularity"))
        names = dict.fromkeys((metric, f"hr@{metric.partition('@')[2]}"))
        return [
            tables.Row(
                f"Test {formats.metric_name(name)}",
                formats.metric(values[name]),
                f"{formats.ratio(values[name], baseline[name])} popularity" if baseline.get(name) else "",
                changed=name == metric,
            )
            for name in names
            if name in values
        ]
    best = history.best_validation(metric)
    if best is None or metric not in best.metrics:
        return []
    name = f"Validation {formats.metric_name(metric)}"
    return [tables.Row(name, formats.metric(best.metrics[metric]), f"best, at step {best.step:,}", changed=True)]


def result(
    evaluation: Mapping[str, Mapping[str, Any]], metric: str, best_known: Mapping[str, float]
) -> dict[str, Any] | None:
    """The result table and the protocol card, of test, or of validation where test is missing; None without either."""
    name = next((name for name in ("test", "validation") if name in evaluation), None)
    if name is None:
        return None
    role = evaluation[name]
    limits = tables.best_known_of(role, best_known) if name == "test" else {}
    step = role.get("best_step")
    text = f"{name.capitalize()} metrics of {formats.count(role.get('num_users'))} users"
    if isinstance(step, int):
        refit = (role.get("protocol") or {}).get("refit_on_validation")
        text += f", with the weights of step {step:,}, " + (
            "trained on the validation events too" if refit else "the best on validation"
        )
    text += ". Popularity recommends to everyone what occurs most in training, under the same protocol."
    text += " Best known is what a perfect model of this log reaches." if limits else ""
    return {
        "text": text,
        "rows": tables.result_rows(role, metric, limits),
        "has_best_known": bool(limits),
        "has_intervals": bool(role.get("intervals")),
        "lists": [*tables.beyond_rows(role, metric), *tables.head_rows(role)],
        "slices": tables.slice_groups(role, metric),
        "protocol": tables.protocol_rows(role.get("protocol")),
    }


def served(
    evaluation: Mapping[str, Mapping[str, Any]], served: Mapping[str, Mapping[str, Any]], metric: str
) -> dict[str, Any] | None:
    """The table of `evaluation-served.json` beside the run's own metrics, and the lines in which the cards differ.

    Of test, or of validation where test is missing; None without either.
    """
    name = next((name for name in ("test", "validation") if name in served), None)
    if name is None:
        return None
    own, role = evaluation.get(name, {}), served[name]
    text = f"{name.capitalize()} metrics of {formats.count(role.get('num_users'))} users, of the last "
    text += "`genrec evaluate` with options that change who answers, beside the run's own."
    if own and own.get("best_step") != role.get("best_step"):
        text += f" The run's own are of step {own.get('best_step')} and these of step {role.get('best_step')}: "
        text += "one of the two is left from an earlier evaluation."
    before, card = own.get("protocol") or {}, role.get("protocol") or {}
    return {
        "text": text,
        "rows": tables.result_rows({**role, "popularity": own.get("metrics")}, metric, {}),
        "has_intervals": bool(role.get("intervals")),
        "protocol": tables.protocol_rows({line: value for line, value in card.items() if value != before.get(line)}),
    }


def validations(history: History, metric: str) -> dict[str, Any]:
    """The last validations as a table, the best one always among them."""
    shown = history.validations[-MAX_VALIDATION_ROWS:]
    best = history.best_validation(metric)
    if best is not None and best not in shown:
        shown = (best, *shown)
    names = tables.ordered_metrics(list(dict.fromkeys(name for row in shown for name in row.metrics)))
    return {
        "metrics": [formats.metric_name(name) for name in names],
        "num_all": len(history.validations),
        "rows": [
            {
                "step": formats.count(row.step),
                "epoch": formats.number(row.epoch),
                "elapsed": formats.seconds(row.elapsed_s),
                "metrics": [formats.metric(row.metrics.get(name)) for name in names],
                "took": formats.seconds(row.seconds),
                "best": row is best,
            }
            for row in shown
        ],
    }


def starts(history: History) -> dict[str, Any]:
    """The starts as a table, and the startup phases of the first start and the last ones."""
    numbered = list(enumerate(history.starts, start=1))
    text = "The run was started once."
    if len(numbered) != 1:
        repeated = sum(start.num_repeated_steps for start in history.starts)
        text = (
            f"The run was started {len(numbered):,} times, {len(history.restart_steps):,} of them from a checkpoint; "
            f"{formats.count(repeated)} logged steps were done again."
        )
    if len(numbered) > MAX_START_ROWS:
        text += f" The last {MAX_START_ROWS} are listed."
    timed = numbered if len(numbered) <= MAX_PHASE_COLUMNS else [numbered[0], *numbered[1 - MAX_PHASE_COLUMNS :]]
    return {
        "text": text,
        "rows": [
            {
                "index": index,
                "when": formats.moment(start.time_s),
                "how": ("resumed" if start.resumed else "fresh") + (f", {start.launcher}" if start.launcher else ""),
                "step": formats.count(start.step),
                "repeated": formats.count(start.num_repeated_steps) if start.resumed else formats.MISSING,
                "workers": formats.count(start.workers),
                "startup": formats.seconds(sum(start.startup.values())) if start.startup else formats.MISSING,
            }
            for index, start in numbered[-MAX_START_ROWS:]
        ],
        "phases": tables.phase_rows([start for _, start in timed]),
        "phase_columns": [index for index, _ in timed],
    }
