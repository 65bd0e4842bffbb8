"""What a worker of a benchmark does: some steps of real training, of its data alone, or of its computing alone.

`full` is genrec's own loop, engine and data stream without validation and checkpoints. `data-only` reads the same
stream and has no model. `compute-only` trains on the same micro-batches, which are in memory before the clock starts.
"""

import importlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from genrec.bench.matrix import Mode
from genrec.bench.memory import MemoryWatch, limit_memory, state_bytes
from genrec.config import ExperimentConfig
from genrec.data.batch import Batch
from genrec.data.manifest import Manifest, load_manifest
from genrec.data.stream import Place
from genrec.planning.hardware import measure_gemm
from genrec.training.context import WorkerContext
from genrec.training.deepspeed_setup import import_deepspeed
from genrec.training.engine import Engine, build_engine
from genrec.training.hooks import LogHook
from genrec.training.loop import train
from genrec.training.meters import StepMeter
from genrec.training.products import matmul_precision
from genrec.training.profile import step_seconds
from genrec.training.state import TrainState
from genrec.training.step_guard import StepGuard
from genrec.training.tracking import start_tracker
from genrec.training.worker import batches_from, new_model, set_threads

LATE_IMPORTS = ("torch._dynamo", "functorch.compile", "torch.profiler", "pyarrow.dataset")
"""What torch, DeepSpeed and the data set import when they are first used."""

GEMM_SIZE, GEMM_S = 1_024, 1.0


@dataclass(slots=True)
class Reading:
    """What one worker read; times in seconds, memory in bytes beyond `baseline_bytes`."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    num_targets: int = 0
    """Events with a loss, of all workers."""
    num_tokens: int = 0
    """Tokens of this worker."""
    lengths: list[list[int]] = field(default_factory=list)
    """Lengths of this worker's windows in each measured step."""
    sections: dict[str, float] = field(default_factory=dict)
    """`step_s` and its parts, a step."""
    baseline_bytes: int | None = None
    peak_bytes: int | None = None
    weights_bytes: int | None = None
    optimizer_bytes: int | None = None
    """What this worker keeps between steps (`state_bytes`)."""
    gemm_flops: float | None = None
    """FLOP/s of a matrix product on this worker, measured after the steps; None on a GPU whose peak is published."""
    device_name: str | None = None

    def as_values(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Span:
    """Which steps are measured: those after the first `warmup_steps`."""

    mode: Mode
    warmup_steps: int
    memory_limit_bytes: int | None


def measure(config: ExperimentConfig, context: WorkerContext, span: Span) -> Reading:
    """Measures the steps of a run after the warm-up; every worker calls it."""
    set_threads(config, context.workers)
    manifest = load_manifest(config.data.prepared)
    if span.mode == "data-only":
        return _read_data(config, context, manifest)
    return _train_steps(config, context, manifest, span)


def _read_data(config: ExperimentConfig, context: WorkerContext, manifest: Manifest) -> Reading:
    """From the first read on, because what has been read ahead would otherwise count as read in no time."""
    reading = Reading()
    context.all_reduce(torch.zeros(1))  # all workers start together
    began, began_cpu = time.perf_counter(), time.process_time()
    for _ in _counted(batches_from(config, context, manifest, 0), reading, 0):
        continue
    reading.seconds, reading.cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    reading.sections = {"step_s": reading.seconds / context.end_step}
    return reading


def _train_steps(config: ExperimentConfig, context: WorkerContext, manifest: Manifest, span: Span) -> Reading:
    batches: Iterable[tuple[Place, Batch]] = batches_from(config, context, manifest, 0)
    if span.mode == "compute-only":
        batches = list(batches)
    _import_all(config, context.device)
    reading = Reading()
    memory = MemoryWatch(context.device)
    if span.memory_limit_bytes is not None:
        limit_memory(span.memory_limit_bytes)
    engine = build_engine(config, new_model(config, manifest), workers=context.workers, device=context.device)
    state = TrainState()
    tracker = start_tracker(config, context.run.metrics_path, None) if context.rank == 0 else None
    log = LogHook(config, engine, context, tracker, context.end_step)
    stretch = _Stretch(engine, context, span.warmup_steps, reading)
    guard = StepGuard(config, context, state)
    counted = _counted(batches, reading, span.warmup_steps)
    train(config, engine, counted, [log, stretch], state, context.end_step, guard)
    reading.baseline_bytes, reading.peak_bytes = memory.baseline_bytes, memory.peak_bytes()
    reading.weights_bytes, reading.optimizer_bytes = state_bytes(engine)
    if tracker is not None:
        tracker.close()
    reading.device_name = torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else None
    if span.memory_limit_bytes is None:
        reading.gemm_flops = gemm_flops(config, context.device)
    return reading


def gemm_flops(config: ExperimentConfig, device: torch.device) -> float:
    """The rate of a matrix product, in bf16 or in fp32, whichever is faster.

    A step in bf16 computes its loss in fp32, and on a processor without bf16 that is many times as fast. Products in
    fp32 are as exact as the step's.
    """
    dtypes = {torch.float32, torch.bfloat16 if config.engine.precision == "bf16" else torch.float32}
    with matmul_precision(config):
        return max(measure_gemm(device, dtype, size=GEMM_SIZE, budget_s=GEMM_S) for dtype in dtypes)


def _import_all(config: ExperimentConfig, device: torch.device) -> None:
    """Imports what building an engine would import: 100 MiB of modules are no memory of the model."""
    for name in LATE_IMPORTS:
        importlib.import_module(name)
    if config.engine.name == "deepspeed":
        import_deepspeed(device)


class _Stretch:
    """Starts the clock after the warm-up and stops it after the last step."""

    def __init__(self, engine: Engine, context: WorkerContext, warmup_steps: int, reading: Reading) -> None:
        self.engine = engine
        self.context = context
        self.warmup_steps = warmup_steps
        self.reading = reading
        self._began_cpu = 0.0

    def after_step(self, state: TrainState, meter: StepMeter) -> None:
        """See `Hook`."""
        reading, clock = self.reading, self.engine.clock
        if state.step == self.warmup_steps:
            self.context.all_reduce(torch.zeros(1))  # all workers start together
            self._began_cpu = time.process_time()
            clock.start("hooks")
        elif state.step == self.context.end_step:
            sections = clock.stop()
            reading.seconds = sum(sections.values())
            reading.cpu_seconds = time.process_time() - self._began_cpu
            num_steps = self.context.end_step - self.warmup_steps
            reading.sections = step_seconds({name: seconds / num_steps for name, seconds in sections.items()})


def _counted(
    batches: Iterable[tuple[Place, Batch]], reading: Reading, first_step: int
) -> Iterator[tuple[Place, Batch]]:
    """The same micro-batches; counts those of the steps from `first_step` on."""
    step = -1
    for place, batch in batches:
        if place.step >= first_step:
            if place.step != step:
                step = place.step
                reading.num_targets += batch.step_targets
                reading.lengths.append([])
            reading.num_tokens += batch.num_tokens
            reading.lengths[-1] += batch.offsets.diff().tolist()
        yield place, batch
