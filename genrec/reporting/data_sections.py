"""What each section of a data set's page says, as text and rows; page and terminal only lay them out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genrec.config import GlobalTimeSplit, Split
from genrec.data.manifest import Manifest
from genrec.data.packing import ATTENTION_LENGTH
from genrec.reporting import formats, tables
from genrec.reporting.data_examples import ExampleEvent, ExampleUser
from genrec.reporting.data_facts import Action, ItemType, Lengths, Popularity, Sample
from genrec.reporting.data_plan import Layout, PlanFacts

MAX_PUT_ASIDE_ROWS = 60
EXAMPLE_TEXT = (
    "Users of one row group with a short history, a middling and a long one: their last events, with the ids of the "
    "log. Validation and test predict the events marked as target."
)


@dataclass(frozen=True, slots=True)
class ShareRow:
    """A name, its figures as text, and a bar of `share` percent."""

    name: str
    cells: tuple[str, ...]
    share: float


def num_bytes(manifest: Manifest) -> int:
    """Size of all sequence files."""
    return sum(file.num_bytes for file in manifest.files)


def summary(manifest: Manifest) -> str:
    """The set in one line: source, split, size."""
    source = manifest.config.get("source")
    name = source.get("name") if isinstance(source, dict) else None
    files = len(manifest.files)
    parts = (
        *([f"{name} log"] if name else []),
        manifest.split.name,
        f"{files:,} file{'s' if files != 1 else ''}, {formats.num_bytes(num_bytes(manifest))}",
    )
    return " · ".join(parts)


def sample_note(sample: Sample) -> str:
    """Says what was estimated from a sample; empty when everything was read."""
    if sample.is_whole:
        return ""
    return (
        f"Events over time and actions are estimated from {sample.num_row_groups:,} of {sample.of_row_groups:,} row "
        f"groups ({formats.count(sample.num_events)} of {formats.count(sample.of_events)} events), which hold users at "
        "random. Everything else is counted in full."
    )


def key_figures(manifest: Manifest, lengths: Lengths, plan: PlanFacts | None) -> list[tables.Row]:
    """The handful of numbers at the top of the page."""
    figures = [
        tables.Row("Users", formats.count(manifest.num_users)),
        tables.Row("Items", formats.count(manifest.num_items)),
        tables.Row(
            "Events", formats.count(manifest.num_events), f"{formats.count(manifest.num_train_events)} to train"
        ),
        tables.Row("Events per user", formats.count(lengths.median), f"median; mean {formats.number(lengths.mean, 3)}"),
    ]
    if plan:
        padding = 1 - 1 / plan.padded_to_max_length.slots_per_token
        figures.append(tables.Row("Steps per epoch", formats.count(plan.num_steps), f"{percent(plan.fill)} full"))
        figures.append(tables.Row("Padding avoided", percent(padding), f"of slots, at {plan.max_length} each"))
    return figures


def percent(fraction: float) -> str:
    """A fraction in percent with one decimal: here 99.4% and 100% differ."""
    return f"{100 * fraction:.1f}%"


def contents(manifest: Manifest) -> list[tables.Row]:
    """The manifest: counts, split, files, and what became of the log's rows."""
    size = num_bytes(manifest)
    rows = [*tables.data_rows(manifest), tables.Row("Split", manifest.split.name, _split_hint(manifest.split))]
    if manifest.num_rows:
        rows.append(tables.Row("Rows read", formats.count(manifest.num_rows), "events, rejected and filtered rows"))
    if manifest.source_files:
        total = sum(file.num_bytes for file in manifest.source_files)
        rows.append(tables.Row("Files of the log", formats.count(len(manifest.source_files)), formats.num_bytes(total)))
    if manifest.rejected_files:
        rows.append(tables.Row("Files put aside", formats.count(len(manifest.rejected_files)), "none of their rows"))
    if manifest.parts:
        rows.append(tables.Row("Parts", ", ".join(part.name for part in manifest.parts), "prepared sets in this one"))
    groups = formats.count(manifest.num_row_groups)
    per_group = formats.count(manifest.num_events / max(manifest.num_row_groups, 1))
    rows += [
        tables.Row("Sequence files", formats.count(len(manifest.files)), formats.num_bytes(size)),
        tables.Row("Row groups", groups, f"{per_group} events each, mean"),
        tables.Row("Bytes per event", formats.number(size / max(manifest.num_events, 1), 3), "in the sequence files"),
    ]
    if num_superseded := sum(file.num_superseded for file in manifest.files):
        rows.append(tables.Row("Superseded rows", formats.count(num_superseded), "written anew by an append"))
    return rows


def _split_hint(split: Split) -> str:
    if isinstance(split, GlobalTimeSplit):
        return f"validation from {formats.moment(split.validation_from)}, test from {formats.moment(split.test_from)}"
    return "last event test, the one before it validation"


def spread(lengths: Lengths, popularity: Popularity) -> list[tables.Row]:
    """Quantiles of the lengths, and how unequally items are used."""
    return [
        tables.Row("Events per user", formats.number(lengths.mean, 3), "mean"),
        tables.Row("Median user", formats.count(lengths.median), "events"),
        tables.Row("90th percentile", formats.count(lengths.p90), "events"),
        tables.Row("99th percentile", formats.count(lengths.p99), "events"),
        tables.Row("Longest", formats.count(lengths.longest), "events"),
        tables.Row("Top 1% of items", percent(popularity.top_1_percent_share), "of training events"),
        tables.Row("Top 10% of items", percent(popularity.top_10_percent_share), "of training events"),
        tables.Row("Gini of items", f"{popularity.gini:.3f}", "0 is equal, 1 is one item only"),
        tables.Row(
            "Items never trained", formats.count(popularity.num_never_trained), f"of {popularity.num_items:,} items"
        ),
    ]


def item_type_rows(item_types: Sequence[ItemType]) -> list[ShareRow]:
    """Items and training events of each type."""
    total = max(sum(kind.num_train_events for kind in item_types), 1)
    return [
        ShareRow(
            kind.name or "no type",
            (
                formats.count(kind.num_items),
                formats.count(kind.num_train_events),
                percent(kind.num_train_events / total),
            ),
            100 * kind.num_train_events / total,
        )
        for kind in item_types
    ]


def action_rows(actions: Sequence[Action]) -> list[ShareRow]:
    """How often each action was seen."""
    total = max(sum(action.num_events for action in actions), 1)
    return [
        ShareRow(
            action.name or "no action",
            (formats.count(action.num_events), percent(action.num_events / total)),
            100 * action.num_events / total,
        )
        for action in actions
    ]


def plan_rows(plan: PlanFacts) -> list[tables.Row]:
    """The first epoch in figures."""
    budget = formats.count(plan.tokens_per_step / plan.micro_batches_per_step)
    return [
        tables.Row("Steps", formats.count(plan.num_steps), "optimizer steps per epoch"),
        tables.Row("Micro-batches", formats.count(plan.num_micro_batches), f"{plan.micro_batches_per_step} per step"),
        tables.Row("Windows", formats.count(plan.num_windows), f"{plan.window}, at most {plan.max_length} events"),
        tables.Row("Tokens", formats.count(plan.num_tokens), "events with a target, per epoch"),
        tables.Row("Trained share", percent(plan.trained_share), "of the tokens of whole histories"),
        tables.Row("Tokens per micro-batch", formats.number(plan.tokens_per_micro_batch, 4), f"budget {budget}"),
        tables.Row("Budget filled", percent(plan.fill), "tokens of what the steps could hold"),
        tables.Row("Chunks", formats.count(plan.num_chunks), "read and shuffled as a whole"),
        tables.Row("Cost spread, median step", percent(plan.step_spread_median), "between micro-batches of one step"),
        tables.Row("Cost spread, worst step", percent(plan.step_spread_max), "what workers wait for each other"),
        tables.Row("Largest micro-batch", f"{plan.cost_max_to_mean:.3f}×", "cost against the mean of the epoch"),
    ]


def plan_text(plan: PlanFacts) -> str:
    """Which settings the plan is for."""
    return (
        f"One epoch with sequence.max_length={plan.max_length}, sequence.window={plan.window}, "
        f"batch.tokens_per_step={plan.tokens_per_step}, "
        f"batch.micro_batches_per_step={plan.micro_batches_per_step} and seed={plan.seed}."
    )


def layout_rows(plan: PlanFacts) -> list[ShareRow]:
    """The same windows packed and padded: slots per token, the share of slots that hold a token, cost."""
    layouts = (
        ("Packed", Layout(1.0, 1.0)),
        ("Padded to the longest", plan.padded_to_longest),
        (f"Padded to {plan.max_length}", plan.padded_to_max_length),
    )
    return [
        ShareRow(
            name,
            (f"{layout.slots_per_token:.2f}", f"{layout.cost:.2f}×", percent(1 / layout.slots_per_token)),
            100 / layout.slots_per_token,
        )
        for name, layout in layouts
    ]


def layout_text(plan: PlanFacts) -> str:
    """What the layouts are measured on."""
    part = ""
    if plan.num_packed_chunks < plan.num_chunks:
        part = f" Measured on {plan.num_packed_chunks} of {plan.num_chunks} chunks, spread over the epoch."
    return (
        "The same windows three ways: packed, as genrec trains; padded to the longest window of each micro-batch; "
        "padded to sequence.max_length. A slot holds an event or padding. Micro-batches mix short and long windows; "
        "batches of like lengths would pad less, and mix less. Cost is what the packing balances, "
        f"length + length² / {ATTENTION_LENGTH:,}, where padding costs as much as an event.{part}"
    )


def example_tables(examples: Sequence[ExampleUser]) -> list[dict[str, Any]]:
    """A table for each example user; columns that the log does not fill are left out."""
    result = []
    for user in examples:
        columns = [
            name
            for name in ("Time (UTC)", "Event", "Item", "Title", "Type", "Action", "Role")
            if _is_filled(name, user)
        ]
        result.append(
            {
                "title": f"User {user.user}",
                "hint": f"{formats.count(user.num_events)} events"
                + (f", the last {len(user.events)}" if len(user.events) < user.num_events else ""),
                "columns": columns,
                "rows": [
                    {"cells": [_cell(name, event) for name in columns], "target": event.is_predicted}
                    for event in user.events
                ],
            }
        )
    return result


def _is_filled(column: str, user: ExampleUser) -> bool:
    return any(_cell(column, event) for event in user.events)


def _cell(column: str, event: ExampleEvent) -> str:
    match column:
        case "Time (UTC)":
            return "" if event.time_s is None else formats.moment(event.time_s).removesuffix(" UTC")
        case "Event":
            return f"{event.position:,}" if event.time_s is None else ""
        case "Item":
            return str(event.item)
        case "Title":
            return event.title
        case "Type":
            return event.item_type
        case "Action":
            return event.action
        case _:
            return f"{event.role}, target" if event.is_predicted else event.role


def put_aside(manifest: Manifest) -> list[tables.Row]:
    """Files of the log that were put aside, each with its reason and sentence; the first ones of many."""
    return [tables.Row(file.path, file.reason, file.message) for file in manifest.rejected_files[:MAX_PUT_ASIDE_ROWS]]
