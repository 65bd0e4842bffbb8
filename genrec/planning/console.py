"""A plan for the terminal, and as JSON."""

from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from genrec.planning.planner import Option, Plan
from genrec.planning.scaling import Scaling
from genrec.planning.text import size_text, time_text

SCHEMA_VERSION = 1
SHOWN = 16

PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "item_table": "item table, with its gradient and state",
    "activations": "activations",
    "logits": "loss: scores and their gradients",
    "communication": "communication buffers",
    "data": "micro-batches in flight",
    "runtime": "libraries at work",
    "allocator": "freed, and kept by the C library",
}


def sentence(plan: Plan) -> str:
    """Which option is picked, and why."""
    pick = plan.pick
    if pick is None:
        least = min(plan.options, key=lambda one: one.memory.total)
        return (
            f"Nothing fits: the smallest, {least.engine} with {least.config.batch.micro_batches_per_step} "
            f"micro-batches, needs {size_text(least.memory.total)} a worker, and there are "
            f"{size_text(least.available_bytes)}."
        )
    faster = sum(one.events_per_s > pick.events_per_s for one in plan.options)
    why = f"the fastest of {len(plan.options)}" if not faster else f"the fastest that fits; {faster} faster ones do not"
    return (
        f"Pick: {pick.engine} with {pick.config.batch.micro_batches_per_step} micro-batches a step, {why}. "
        f"{time_text(pick.time.total)} a step ({pick.events_per_s:,.0f} events/s), mostly {pick.time.bottleneck}; "
        f"{size_text(pick.memory.total)} of {size_text(pick.available_bytes)} a worker."
    )


def plan_summary(plan: Plan, scaling: Scaling | None) -> Group:
    """The options, the pick with its memory, and what more nodes would do."""
    size = plan.size
    head = Text.assemble(
        (plan.machine.name, "bold"),
        f"\n{size.total:,} weights, {size.table:,} of them in the item table; "
        f"{plan.flops.total / 1e12:.3g} TFLOP a step\n",
        (f"rates: {plan.calibration.source}\n", "dim"),
    )
    parts: list[RenderableType] = [head, _options(plan)]
    if len(plan.options) > SHOWN:
        parts.append(Text(f"{len(plan.options) - SHOWN} more; --json has all of them\n", style="dim"))
    pick = plan.pick
    if pick is not None:
        parts += [_memory(pick), _time(pick)]
    if scaling is not None and len(scaling.points) > 1:
        parts += [_scaling(scaling)]
    parts.append(Text(sentence(plan), style="bold" if pick else "bold red"))
    if pick is not None:
        parts.append(Text("\n".join(["Use it with:", *(f'  "{one}"' for one in pick.overrides)])))
    if scaling is not None:
        parts += [Text(said) for said in (scaling.limited_by, scaling.breaks_first) if said]
    return Group(*parts)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def _options(plan: Plan) -> Table:
    columns = ("Engine", "Micro-\nbatches", "Step", "Events/s", "Waits for", "Sent", "Memory", "")
    recomputes = any(len(one.overrides) > 2 for one in plan.options)
    table = _table("Options, fastest first", *columns)
    table.padding = (0, 0)  # all columns then fit 80 characters
    for one in plan.options[:SHOWN]:
        again = ", recompute" if recomputes and getattr(one.config.model, "recompute", "none") != "none" else ""
        cells = (
            one.engine + again,
            f"{one.config.batch.micro_batches_per_step:,}",
            time_text(one.time.total),
            f"{one.events_per_s:,.0f}",
            one.time.bottleneck,
            size_text(one.time.sent_bytes),
            size_text(one.memory.total),
            Text(one.why_not, style="red") if one.why_not else Text("fits", style="green"),
        )
        table.add_row(*cells, style="bold" if one is plan.pick else ("dim" if not one.fits else ""))
    return table


def _memory(pick: Option) -> Table:
    table = _table(f"Memory of a worker at its fullest ({pick.memory.moment})", "Part", "Bytes")
    for name, value in pick.memory.parts().items():
        if value:
            table.add_row(PARTS[name], size_text(value))
    table.add_row("all", size_text(pick.memory.total), style="bold")
    if pick.memory.host:
        table.add_row("besides, in host memory", size_text(pick.memory.host))
    return table


def _time(pick: Option) -> Table:
    table = _table("Time of a step", "Part", "Time")
    for name in ("compute", "communication", "optimizer", "overhead"):
        table.add_row(name, time_text(getattr(pick.time, name)))
    table.add_row("data, beside these", time_text(pick.time.data))
    return table


def _scaling(scaling: Scaling) -> Table:
    table = _table("Nodes, at the same work for each worker", "Nodes", "Workers", "Step", "Events/s", "Efficiency")
    for point in scaling.points:
        table.add_row(
            f"{point.nodes:,}",
            f"{point.workers:,}",
            time_text(point.time.total),
            f"{point.events_per_s:,.0f}",
            f"{point.efficiency:.0%}",
        )
    return table


def plan_json(plan: Plan, scaling: Scaling | None) -> dict[str, Any]:
    """Everything of a plan as plain values, for scripts."""
    return {
        "schema_version": SCHEMA_VERSION,
        "machine": asdict(plan.machine),
        "calibration": asdict(plan.calibration),
        "weights": {"total": plan.size.total, "item_table": plan.size.table},
        "flops_per_step": {**asdict(plan.flops), "total": plan.flops.total},
        "options": [_option_json(one) for one in plan.options],
        "pick": None if plan.pick is None else _option_json(plan.pick),
        "sentence": sentence(plan),
        "scaling": None
        if scaling is None
        else {
            "points": [
                {
                    "nodes": point.nodes,
                    "workers": point.workers,
                    "step_s": point.time.total,
                    "events_per_s": point.events_per_s,
                    "efficiency": point.efficiency,
                }
                for point in scaling.points
            ],
            "limited_by": scaling.limited_by,
            "breaks_first": scaling.breaks_first,
        },
    }


def _option_json(one: Option) -> dict[str, Any]:
    return {
        "engine": one.engine,
        "overrides": list(one.overrides),
        "fits": one.fits,
        "why_not": one.why_not,
        "step_s": one.time.total,
        "events_per_s": one.events_per_s,
        "bottleneck": one.time.bottleneck,
        "time_s": {name: value for name, value in asdict(one.time).items() if name != "sent_bytes"},
        "sent_bytes": one.time.sent_bytes,
        "memory_bytes": {**one.memory.parts(), "total": one.memory.total, "host": one.memory.host},
        "fullest": one.memory.moment,
        "available_bytes": one.available_bytes,
    }
