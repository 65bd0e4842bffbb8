"""The tables of a report as plain rows of text: what the HTML page and the console print."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest
from genrec.data.synthetic_best import best_known_key
from genrec.evaluation.bootstrap import MIN_USERS
from genrec.reporting import formats
from genrec.reporting.history import Start, metric_values

METRIC_FAMILIES = ("hr", "ndcg", "mrr")

PROTOCOL_HINTS = {  # by the names that genrec.evaluation.protocol gives its lines
    "role": "which of the held-out events are predicted",
    "split": "what is held out, and from whom",
    "filters": "what was dropped from the log before the split",
    "order": "which of two events comes first",
    "history": "what the model may know of a user",
    "window_events": "how many of those events it is shown, the newest first",
    "uses_query_time": "whether it is told when the predicted event happens",
    "candidates": "what every target competes with",
    "num_candidates": "their number",
    "filter_seen": "whether items of the user's history are left out of the ranking",
    "repeated_targets": "what happens when the target itself is such an item",
    "ties": "how items with the target's own score are ranked",
    "num_users": "the mean is over these",
    "sample": "whether every held-out user counts",
    "epoch_choice": "what decided which weights are evaluated",
    "refit_on_validation": "whether validation events were trained on in the end",
    "starts_from": "whose weights it began with, whatever they had seen",
    "num_seeds": "runs that the numbers average over",
    "seed": "decides weights, order, dropout and negatives",
    "data_hash": "fingerprint of the prepared data set",
}


SLICE_TITLES = {  # by the names that genrec.evaluation.slices gives its kinds
    "history_length": "History length",
    "popularity": "Popularity of the target",
    "item_type": "Type of the target",
    "cold": "Target in training",
}
SLICE_HINTS = {
    "history_length": "events before the target",
    "popularity": "events in training; each slice holds about a fifth of all of them",
}


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One metric beside its baseline and its limit, each as text."""

    metric: str
    model: str
    popularity: str
    ratio: str
    best_known: str
    reached: str
    interval: str
    decisive: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One setting or fact; `changed` says that it differs from its default."""

    name: str
    value: str
    hint: str = ""
    changed: bool = False


@dataclass(frozen=True, slots=True)
class SliceRow:
    """The users of one slice and the deciding metric over them, each as text."""

    name: str
    num_users: str
    share: str
    value: str
    standard_error: str


@dataclass(frozen=True, slots=True)
class SliceGroup:
    """Slices of one kind."""

    title: str
    hint: str
    rows: tuple[SliceRow, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows under one heading."""

    title: str
    hint: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """Seconds of one startup phase in each start; `share` is its part of the last start, in percent."""

    name: str
    seconds: tuple[str, ...]
    share: float


def ordered_metrics(names: Sequence[str]) -> list[str]:
    """`hr@1, hr@5, ..., ndcg@1, ...`: by family, then by cut-off; unknown families last."""

    def place(name: str) -> tuple[int, str, int]:
        family, _, cut_off = name.partition("@")
        known = METRIC_FAMILIES.index(family) if family in METRIC_FAMILIES else len(METRIC_FAMILIES)
        return known, family, int(cut_off) if cut_off.isdecimal() else 0

    return sorted(names, key=place)


def result_rows(role: Mapping[str, Any], decisive: str, best_known: Mapping[str, float]) -> list[ResultRow]:
    """A row for each metric of one role of `evaluation.json`; `decisive` is the metric that chose the weights."""
    model, popularity = metric_values(role.get("metrics")), metric_values(role.get("popularity"))
    intervals = role.get("intervals") or {}
    rows = []
    for name in ordered_metrics(list(model)):
        limit = best_known.get(name)
        rows.append(
            ResultRow(
                metric=formats.metric_name(name),
                model=formats.metric(model[name]),
                popularity=formats.metric(popularity.get(name)),
                ratio=formats.ratio(model[name], popularity.get(name)),
                best_known=formats.metric(limit),
                reached=formats.percent(model[name] / limit) if limit else formats.MISSING,
                interval=interval(intervals.get(name)),
                decisive=name == decisive,
            )
        )
    return rows


def interval(bounds: Any) -> str:
    """`0.0381 to 0.0431`; a dash when there are no two bounds."""
    if not isinstance(bounds, Sequence) or len(bounds) != 2:
        return formats.MISSING
    return " to ".join(formats.metric(bound) for bound in bounds)


def slice_groups(role: Mapping[str, Any], decisive: str) -> list[SliceGroup]:
    """The slices of one role of `evaluation.json` at the metric `decisive`, kind by kind; empty where it has none.

    A few users are too alike to say how far others are from them (bootstrap.MIN_USERS): no standard error is shown.
    """
    slices = role.get("slices")
    return [
        SliceGroup(
            SLICE_TITLES.get(kind, _words(kind)),
            SLICE_HINTS.get(kind, ""),
            tuple(
                SliceRow(
                    name,
                    formats.count(part["num_users"]),
                    formats.percent(part["num_users"] / role["num_users"]),
                    formats.metric(part["metrics"].get(decisive)),
                    formats.metric(part["standard_errors"].get(decisive) if part["num_users"] >= MIN_USERS else None),
                )
                for name, part in parts.items()
            ),
        )
        for kind, parts in (slices.items() if isinstance(slices, Mapping) else ())
    ]


def beyond_rows(role: Mapping[str, Any], decisive: str) -> list[Row]:
    """Coverage, novelty and Gini at the cut-off of the metric `decisive`; empty where they were not measured."""
    values, k = metric_values(role.get("beyond_accuracy")), decisive.partition("@")[2]
    rows = [
        Row(f"Coverage@{k}", formats.percent(values.get(f"coverage@{k}")), "of the catalogue is in somebody's list"),
        Row(f"Novelty@{k}", f"{formats.number(values.get(f'novelty@{k}'), 3)} bits", "mean surprise of a listed item"),
        Row(f"Gini@{k}", formats.number(values.get(f"gini@{k}"), 3), "0: all items listed alike; 1: one item only"),
    ]
    return rows if f"coverage@{k}" in values else []


def head_rows(role: Mapping[str, Any]) -> list[Row]:
    """How well a model tells what happens to the held-out events, given their items; empty without heads."""
    values = metric_values(role.get("heads"))
    rows = []
    if "action_accuracy" in values:
        accuracy, guess = formats.percent(values["action_accuracy"]), formats.percent(values.get("action_majority"))
        loss, base = (formats.number(values.get(f"action_{name}"), 3) for name in ("log_loss", "base_log_loss"))
        rows = [
            Row(
                "Action accuracy",
                f"{accuracy} (most frequent action: {guess})",
                "of the held-out events, given their items",
            ),
            Row("Action log loss", f"{loss} (shares of the actions: {base})", "mean of -log p(action)"),
        ]
    if "dwell_mae_log" in values:
        error, base = (formats.number(values.get(f"dwell_{name}"), 3) for name in ("mae_log", "base_mae_log"))
        rows.append(Row("Dwell error", f"{error} (median of all: {base})", "mean of |error| of log(1 + seconds)"))
    return rows


def best_known_of(role: Mapping[str, Any], best_known: Mapping[str, float]) -> dict[str, float]:
    """The best reachable value of each metric of a test result, out of a manifest's `best_known`.

    What is reachable depends on two lines of the protocol card: it is known for rankings of the whole catalogue only
    (seen items not filtered), and a model that uses the query time can reach more.
    """
    card = role.get("protocol")
    card = card if isinstance(card, Mapping) else {}
    if card.get("filter_seen"):
        return {}
    query_time = bool(card.get("uses_query_time"))
    keys = {name: best_known_key(name, uses_query_time=query_time) for name in metric_values(role.get("metrics"))}
    return {name: best_known[key] for name, key in keys.items() if key in best_known}


def protocol_rows(card: Any) -> list[Row]:
    """The lines of a protocol card, each with what it means in a few words."""
    if not isinstance(card, Mapping):
        return []
    return [Row(_words(str(name)), _spoken(value), PROTOCOL_HINTS.get(str(name), "")) for name, value in card.items()]


def _words(name: str) -> str:
    spaced = name.replace("_", " ").strip()
    return (f"number of {spaced[4:]}" if spaced.startswith("num ") else spaced).capitalize()


def _spoken(value: Any) -> str:
    """A value of the card: yes and no for a person, not true and false."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return formats.count(value)
    return "none" if value is None else formats.plain(value)


def changed_rows(groups: Sequence[Group]) -> list[Row]:
    """The settings that differ from their default or have none, by their full name."""
    return [
        Row(row.name if group is groups[0] else f"{group.title}.{row.name}", row.value, row.hint, True)
        for group in groups
        for row in group.rows
        if row.changed
    ]


def config_groups(config: ExperimentConfig) -> list[Group]:
    """Every setting of the resolved config, by section, with its description; top-level settings come first."""
    top: list[Row] = []
    groups: list[Group] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            groups.append(Group(name, field.description or "", tuple(_setting_rows(value))))
        else:
            top.append(_setting_row(config, name, name))
    return [Group("run", "what tells this run from others", tuple(top)), *groups]


def _setting_rows(section: BaseModel, prefix: str = "") -> Iterator[Row]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _setting_rows(value, f"{prefix}{name}.")
        else:
            yield _setting_row(section, name, f"{prefix}{name}")


def _setting_row(section: BaseModel, name: str, label: str) -> Row:
    field, value = type(section).model_fields[name], getattr(section, name)
    changed = field.is_required() or value != field.get_default(call_default_factory=True)
    return Row(label, formats.plain(value), field.description or "", changed)


def environment_groups(environment: Mapping[str, Any]) -> list[Group]:
    """The facts of `environment.json`: a group for each nested part, loose values first."""
    loose = [Row(str(key), formats.plain(value)) for key, value in environment.items() if not _is_nested(value)]
    groups = [
        Group(str(key), "", tuple(_facts(value))) for key, value in environment.items() if _is_nested(value) and value
    ]
    return [Group("general", "", tuple(loose)), *groups] if loose else groups


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value))


def _facts(value: Any, prefix: str = "") -> Iterator[Row]:
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in parts:
        name = f"{prefix}{key}"
        if _is_nested(child) and child:
            yield from _facts(child, f"{name}.")
        else:
            yield Row(name, formats.plain(child))


def data_rows(manifest: Manifest) -> list[Row]:
    """What was trained on: the counts of the prepared data set."""
    rows = [
        Row("Users", formats.count(manifest.num_users)),
        Row("Items", formats.count(manifest.num_items)),
        Row("Events", formats.count(manifest.num_events), f"{formats.count(manifest.num_train_events)} in training"),
        Row("Events per user", formats.number(manifest.num_events / max(manifest.num_users, 1), 3), "mean"),
    ]
    if manifest.has_times:
        first, last = (formats.moment(time) for time in manifest.time_range)
        rows.append(Row("First event", first))
        rows.append(Row("Last event", last))
    else:
        rows.append(Row("Times", "none", "the log gives an order only"))
    if manifest.actions:
        rows.append(Row("Actions", ", ".join(manifest.actions)))
    if (vectors := manifest.item_vectors) is not None:
        note = f"{vectors.dim:,} numbers each; {vectors.num_cold_items:,} cold items, known by their vector alone"
        rows.append(Row("Items with a vector", formats.count(vectors.num_items), note))
    rows.extend(Row(_words(reason), formats.count(n), "rows filtered") for reason, n in manifest.filtered.items())
    rows.extend(Row(_words(reason), formats.count(n), "rows rejected") for reason, n in manifest.rejected.items())
    rows.append(Row("Content hash", manifest.content_hash[:12], "first 12 digits"))
    return rows


def phase_rows(starts: Sequence[Start]) -> list[Phase]:
    """Startup phases in the order they are recorded, one column for each start, and their total as the last row."""
    names = list(dict.fromkeys(name for start in starts for name in start.startup))
    if not names:
        return []
    totals = [sum(value for value in start.startup.values() if math.isfinite(value)) for start in starts]
    phases = [
        Phase(
            _words(name),
            tuple(formats.seconds(start.startup.get(name)) for start in starts),
            100 * _finite(starts[-1].startup.get(name)) / totals[-1] if totals[-1] else 0.0,
        )
        for name in names
    ]
    return [*phases, Phase("Total", tuple(formats.seconds(total) for total in totals), 0.0)]


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else 0.0
