"""What a plan's pick is on fewer and on more nodes, at the same work for each worker, and what breaks first."""

from dataclasses import dataclass

from genrec.config import ExperimentConfig, config_from_dict
from genrec.config_workers import MAX_MICRO_BATCHES
from genrec.planning.planner import Option, Plan
from genrec.planning.step_time import STREAM_EVENTS_PER_S, StepTime, predict_step
from genrec.planning.text import time_text

MOST_NODES = 4_096

LIMITS = {
    "data": "reading data, which a worker waits for at {rate:,.0f} events a second; wider or deeper models hide it",
    "optimizer": "the optimizer's update, which takes as long whatever a step holds; more events for each worker "
    "(batch.tokens_per_step) share it out",
    "overhead": "the fixed cost of micro-batches; fewer and larger ones (batch.micro_batches_per_step) share it out",
}
"""What may limit a step on any number of nodes, and the way out, by `StepTime.bottleneck`."""


@dataclass(frozen=True, slots=True)
class ScalePoint:
    """A number of nodes: the step's time, and its efficiency against one node (1 is all of it)."""

    nodes: int
    workers: int
    time: StepTime
    events_per_s: float
    efficiency: float


@dataclass(frozen=True, slots=True)
class Scaling:
    """The points; what limits one node already, empty where it computes or communicates; and what breaks first."""

    points: tuple[ScalePoint, ...]
    limited_by: str
    breaks_first: str


def scaling_of(plan: Plan) -> Scaling | None:
    """How the pick scales; None without a pick."""
    pick = plan.pick
    if pick is None:
        return None
    one = _time_on(plan, pick, 1)
    nodes = sorted({1, *(2**power for power in range(17) if 2**power <= plan.machine.nodes), plan.machine.nodes})
    points = tuple(_point(plan, pick, one, count) for count in nodes)
    return Scaling(points, limit_sentence(one), _breaks_first(plan, pick, one))


def limit_sentence(one: StepTime) -> str:
    """What limits a step already on one node, where that is neither computing nor communicating; else nothing."""
    limit = LIMITS.get(one.bottleneck)
    if limit is None:
        return ""
    taken = getattr(one, one.bottleneck)
    return (
        f"On one node already most of a step ({time_text(taken)} of {time_text(one.total)}) is "
        f"{limit.format(rate=STREAM_EVENTS_PER_S)}."
    )


def _point(plan: Plan, pick: Option, one: StepTime, nodes: int) -> ScalePoint:
    time = _time_on(plan, pick, nodes)
    share = pick.tokens_per_step * nodes / plan.machine.nodes
    return ScalePoint(nodes, nodes * plan.machine.workers_per_node, time, share / time.total, one.total / time.total)


def _time_on(plan: Plan, pick: Option, nodes: int) -> StepTime:
    """The step on `nodes`, with as many micro-batches and events for each worker."""
    return predict_step(
        _with_workers(pick.config, plan, nodes),
        plan.size,
        pick.work.times(nodes / plan.machine.nodes),
        machine=plan.machine,
        calibration=plan.calibration,
        nodes=nodes,
    )


def _with_workers(config: ExperimentConfig, plan: Plan, nodes: int) -> ExperimentConfig:
    each = config.batch.micro_batches_per_step // plan.machine.workers
    workers = nodes * plan.machine.workers_per_node
    tokens = config.batch.tokens_per_step // plan.machine.workers * workers
    values = config.model_dump(mode="json")
    values["cluster"] |= {"workers": workers}
    values["batch"] |= {"micro_batches_per_step": each * workers, "tokens_per_step": tokens}
    return config_from_dict(values)


def _breaks_first(plan: Plan, pick: Option, one: StepTime) -> str:
    each = max(pick.config.batch.micro_batches_per_step // plan.machine.nodes, 1)
    largest = max(plan.machine.nodes, min(MOST_NODES, MAX_MICRO_BATCHES // each))
    nodes = 1
    while nodes <= largest:
        time = _time_on(plan, pick, nodes)
        if plan.machine.workers_per_node * nodes > 1 and time.communication > time.compute:
            place = f"between nodes: from {nodes} nodes on it takes" if nodes > 1 else "inside a node: it takes"
            return (
                f"What breaks first is {_collective(pick)} {place} longer than the computation "
                f"({time_text(time.communication)} against {time_text(time.compute)} a step); more events for "
                f"each worker (batch.tokens_per_step) put that off. {_table_limit(pick)}"
            )
        nodes *= 2
    efficiency = one.total / _time_on(plan, pick, largest).total
    return (
        f"Nothing breaks up to {largest:,} nodes: communication stays below the computation there (efficiency "
        f"{efficiency:.0%}). {_table_limit(pick)}"
    )


def _collective(pick: Option) -> str:
    stage = getattr(pick.config.engine, "zero_stage", 0)
    return "the gather of weights" if stage == 3 else "the reduction of gradients"


def _table_limit(pick: Option) -> str:
    """How much larger the item table may grow."""
    parts = pick.memory
    factor = (pick.available_bytes - parts.total + parts.item_table) / parts.item_table
    return (
        f"The item table takes {parts.item_table / 2**30:.2g} GiB of a worker's {pick.available_bytes / 2**30:.3g} "
        f"GiB, and there is room for {factor:,.{1 if factor < 100 else 0}f} times as many items."
    )
