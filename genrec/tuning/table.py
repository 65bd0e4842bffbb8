"""The table of a sweep in the terminal: what each trial does, with its settings, its metric, its cost or its error."""

from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from genrec.tuning.director import ranking
from genrec.tuning.records import Sweep, Trial

MAX_ROWS = 40

_STYLES = {"running": "cyan", "finished": "green", "failed": "red", "rejected": "yellow", "cut": "yellow"}


def sweep_table(sweep: Sweep, max_rows: int = MAX_ROWS) -> Group:
    """Trials as rows: those that run first, then the best; one line below sums up."""
    ranked = ranking(sweep.trials, sweep.metrics[0], sweep.modes[0])
    running = [trial for trial in sweep.trials if trial.state == "running"]
    rest = [trial for trial in sweep.trials if trial not in running and trial not in ranked]
    rows = [*running, *(trial for trial in ranked if trial not in running), *rest]
    keys = list(dict.fromkeys(key for trial in sweep.trials for key in trial.settings))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("trial", "state", *(short_key(key) for key in keys), *sweep.metrics, "step", "time"):
        table.add_column(column, overflow="fold")
    for trial in rows[:max_rows]:
        best = "*" if trial.number == sweep.best else ""
        table.add_row(
            trial.id + best,
            Text(trial.state, style=_STYLES.get(trial.state, "")),
            *(_plain(trial.settings.get(key)) for key in keys),
            *(_number(None if trial.best is None else trial.best.get(name)) for name in sweep.metrics),
            f"{trial.progress.step:,}" + (f"/{trial.progress.end_step:,}" if trial.progress.end_step else ""),
            duration(trial.progress.seconds),
        )
    lines: list[Any] = [table]
    if len(rows) > max_rows:
        lines.append(f"... and {len(rows) - max_rows} more in sweep.json")
    lines += [
        Text(f"{trial.id} {trial.state}: {trial.reason}", style=_STYLES.get(trial.state, ""))
        for trial in sweep.trials
        if trial.state in ("failed", "rejected") and trial.reason
    ][:10]
    lines.append(summary(sweep))
    return Group(*lines)


def summary(sweep: Sweep) -> str:
    """How many trials are where, and what they have cost, on one line."""
    counts: dict[str, int] = {}
    for trial in sweep.trials:
        counts[trial.state] = counts.get(trial.state, 0) + 1
    states = ", ".join(f"{number} {state}" for state, number in counts.items()) or "no trial yet"
    prices = [trial.price for trial in sweep.trials if trial.price is not None]
    price = f", price {sum(prices):.2f}" if prices else ""
    ended = f"; {escape(sweep.reason)}" if sweep.reason else ""
    return (
        f"{states}; {sweep.max_concurrent} at a time; {duration(sweep.seconds)}, "
        f"{sweep.worker_seconds / 3_600:.2f} worker hours{price}{ended}"
    )


def line_of(trial: Trial, metric: str) -> str:
    """What became of a trial, for output that is not a terminal."""
    value = "" if trial.best is None else f", {metric} {trial.best.get(metric, float('nan')):.4f}"
    settings = ", ".join(f"{short_key(key)}={_plain(setting)}" for key, setting in trial.settings.items())
    reason = f": {trial.reason}" if trial.reason else ""
    return escape(f"{trial.id} {trial.state} ({settings}{value}){reason}")


def short_key(key: str) -> str:
    """`lr` for `optimizer.lr`; a name that says nothing keeps its section."""
    section, _, last = key.rpartition(".")
    return key if last in ("name", "dim", "") or not section else last


def duration(seconds: float) -> str:
    """`3m05s`."""
    whole = round(seconds)
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60:02d}s"


def _plain(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"
