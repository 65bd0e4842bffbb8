"""What a benchmark of training measured, in sentences, and what the words of its report mean."""

from collections.abc import Mapping, Sequence
from typing import Any

from genrec.bench.result import Result
from genrec.reporting import formats
from genrec.reporting.bench_cases import Case
from genrec.reporting.document import Section
from genrec.reporting.tables import Row

BASE = (
    "model.name",
    "model.dim",
    "loss.name",
    "data.source.name",
    "cluster.workers",
    "engine.name",
    "engine.precision",
)
"""Settings of the base that tell most about it."""
MAX_NAMES = 6
MODES = {
    "full": "training",
    "data-only": "reading the data alone",
    "compute-only": "training on data that are in memory already",
}
WORDS = {
    "events_per_s": (
        "Events/s",
        "events that all workers train on in a second; an event is one item that somebody played, watched or bought",
    ),
    "step_s": ("Step", "one update of the model's weights, which all workers make together"),
    "workers": (
        "Worker",
        "one of the processes that train together: each has a share of every step and memory of its own",
    ),
    "engine.zero_stage": (
        "zero_stage (ZeRO)",
        "what DeepSpeed divides among the workers instead of copying it to each: 0 nothing, 1 the optimizer's state, "
        "2 the gradients too, 3 the weights too",
    ),
    "batch.tokens_per_step": ("tokens_per_step", "events in one step, of all workers together"),
    "model.dim": ("dim", "numbers in the vector of an item: how wide the model is"),
    "engine.precision": ("precision", "fp32 computes with 32 bits a number, bf16 with 16"),
    "engine.matmul_precision": (
        "matmul_precision",
        "how exact products of fp32 matrices are: highest fp32, high and medium TF32 on a GPU, medium bf16 on a CPU "
        "that has it",
    ),
    "model.recompute": ("recompute", "whether layers are computed again in the backward pass, to hold less memory"),
    "peak_bytes": (
        "Peak memory",
        "the most that the fullest worker held beyond what its process had before the model was built",
    ),
    "optimizer_bytes": ("Kept", "weights and optimizer state that a worker holds from step to step"),
    "predicted_bytes": ("Predicted", "what genrec plan says before anything runs"),
    "mfu": ("MFU", "the arithmetic that the model asks for in a second, as a part of what the processor can do"),
}
"""What a key of the rows is called in the report, and what that means."""


def what_was_measured(result: Result, cases: Sequence[Case]) -> list[str]:
    """How many cases, what was varied, what they have in common, and how each was measured; from the echoed matrix."""
    config = result.config
    names = list(dict.fromkeys(case.name for case in cases))
    if not names:
        return []
    said = [f"{_counted(len(names), 'case')} of training{_steps(config)}."]
    axes = config.get("axes")
    if isinstance(axes, Mapping) and axes:
        varied = "; ".join(f"`{key}` {_listed(values)}" for key, values in axes.items())
        said.append(f"Varied: {varied}.")
    elif len(names) <= MAX_NAMES:
        said.append(f"The cases: {', '.join(f'`{name}`' for name in names)}.")
    if alike := _alike(config.get("base"), {key for case in cases for key in case.axes}):
        said.append(f"Alike in all: {alike}.")
    modes = list(dict.fromkeys(case.mode for case in cases))
    if len(modes) > 1:
        said.append(f"Each in {len(modes)} modes: {'; '.join(f'{m}, {MODES.get(m, m)}' for m in modes)}.")
    return [" ".join(said)]


def words_section(cases: Sequence[Case]) -> Section | None:
    """What the words mean that these cases have numbers for; None when there are none."""
    known = {key for case in cases for key in (*case.values, *case.axes)}
    known |= {"workers"} if any(case.workers for case in cases) else set()
    rows = tuple(Row(word, meaning) for key, (word, meaning) in WORDS.items() if key in known)
    return Section("words", "What the words mean", protocol=rows) if rows else None


def _steps(config: Mapping[str, Any]) -> str:
    steps, warmup, times = (config.get(key) for key in ("steps", "warmup_steps", "repetitions"))
    if not isinstance(steps, int) or not isinstance(times, int):
        return ""
    often = "once" if times == 1 else f"{times} times"
    after = f" after {warmup} to warm up" if warmup else ""
    return f", each measured {often}, over {_counted(steps, 'step')}{after}, in new processes"


def _alike(base: Any, varied: set[str]) -> str:
    """`model.name` sasrec, ...: what the base sets and no case changes."""
    if not isinstance(base, Mapping):
        return ""
    found = {key: _at(base, key) for key in BASE if key not in varied}
    return ", ".join(f"`{key}` {formats.plain(value)}" for key, value in found.items() if value is not None)


def _at(values: Mapping[str, Any], key: str) -> Any:
    node: Any = values
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _listed(values: Any) -> str:
    return ", ".join(formats.plain(value) for value in values) if isinstance(values, list) else formats.plain(values)


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
