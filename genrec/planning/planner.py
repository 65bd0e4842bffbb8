"""Every way to run a config on a machine: what it needs, how long a step takes, which one is the fastest that fits."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from genrec.config import ExperimentConfig, config_from_dict
from genrec.errors import ConfigError
from genrec.overrides import apply_overrides
from genrec.planning.activations import Activations, Load, load_of, measure_activations
from genrec.planning.calibration import Calibration, assumed
from genrec.planning.fit import check_known
from genrec.planning.flops import StepFlops, step_flops
from genrec.planning.machine import Machine, this_machine
from genrec.planning.memory import MemoryParts, predict_memory
from genrec.planning.model_size import ModelSize, model_size
from genrec.planning.step_time import StepTime, StepWork, predict_step
from genrec.planning.workload import Windows, Workload, read_windows, shared_parts
from genrec.training.start import engine_words

LOOKED_AT = 4
"""Micro-batches of most cost whose memory is worked out."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to run a config: the overrides that ask for it, its memory and its time."""

    engine: str
    overrides: tuple[str, ...]
    config: ExperimentConfig
    memory: MemoryParts
    time: StepTime
    work: StepWork
    available_bytes: float
    host_bytes: float

    @property
    def tokens_per_step(self) -> float:
        """Events of a mean step."""
        return self.work.tokens

    @property
    def fits(self) -> bool:
        """Whether a worker has the memory."""
        return self.memory.total <= self.available_bytes and self.memory.host <= self.host_bytes

    @property
    def why_not(self) -> str:
        """What does not fit, in a few words; empty where all does."""
        if self.fits:
            return ""
        if self.memory.total > self.available_bytes:
            parts = self.memory.parts()
            return f"{max(parts, key=lambda name: parts[name]).replace('_', ' ')} too large"
        return "host memory too small"

    @property
    def events_per_s(self) -> float:
        """Events of all workers in a second."""
        return self.tokens_per_step / self.time.total


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of a config, fastest first, those that fit before those that do not."""

    machine: Machine
    calibration: Calibration
    size: ModelSize
    flops: StepFlops
    options: tuple[Option, ...]

    @property
    def pick(self) -> Option | None:
        """The fastest option that fits; of equals, the one that needs the least memory."""
        return self.options[0] if self.options and self.options[0].fits else None


@dataclass(slots=True)
class Estimator:
    """Works options out, and counts for each kind of activations once."""

    windows: Windows
    machine: Machine
    calibration: Calibration
    _activations: dict[tuple[str, ...], Activations] = field(default_factory=dict)
    _workloads: dict[int, Workload | None] = field(default_factory=dict)
    _flops: dict[int, StepFlops] = field(default_factory=dict)

    def workload(self, parts: int) -> Workload | None:
        """The steps in a number of micro-batches."""
        if parts not in self._workloads:
            self._workloads[parts] = self.windows.workload(parts)
        return self._workloads[parts]

    def activations(self, config: ExperimentConfig) -> Activations:
        """What the config's model keeps of a micro-batch."""
        engine = config.engine
        kind = "whole" if engine.precision == "fp32" else engine.name
        key = (engine.precision, kind, getattr(config.model, "recompute", "none"))
        if key not in self._activations:
            code_sizes = self.windows.catalogue.code_sizes
            self._activations[key] = measure_activations(config, on_gpu=self.machine.on_gpu, code_sizes=code_sizes)
        return self._activations[key]

    def flops(self, config: ExperimentConfig, work: Workload) -> StepFlops:
        """FLOPs of a mean step."""
        if work.parts not in self._flops:
            catalogue, steps = work.catalogue, work.num_steps
            whole = step_flops(
                config,
                catalogue.num_train_items,
                work.lengths,
                num_actions=catalogue.num_actions,
                vector_dim=catalogue.vector_dim,
                code_sizes=catalogue.code_sizes,
            )
            parts = (whole.projections, whole.attention, whole.feed_forward, whole.other, whole.loss)
            self._flops[work.parts] = StepFlops(*(part / steps for part in parts))
        return self._flops[work.parts]

    def memory(self, config: ExperimentConfig, size: ModelSize) -> MemoryParts | None:
        """Memory of a worker on the heaviest micro-batch; None where a micro-batch cannot hold the longest window."""
        work = self.workload(config.batch.micro_batches_per_step)
        if work is None:
            return None
        activations, items, load = self.activations(config), work.catalogue.items_of_loss, self.heaviest(config, work)
        return predict_memory(config, size, activations, load, items=items, workers=self.machine.workers)

    def heaviest(self, config: ExperimentConfig, work: Workload) -> Load:
        """The micro-batch of which most is kept."""
        activations, levels = self.activations(config), len(work.catalogue.code_sizes)
        loads = [load_of(lengths, config, levels) for lengths in work.heaviest(LOOKED_AT)]
        return max(loads, key=lambda one: activations.kept(one, work.catalogue.items_of_loss))

    def step_work(self, config: ExperimentConfig, work: Workload) -> StepWork:
        """A mean step; packing makes its micro-batches so alike that the heaviest may stand for all."""
        load = self.heaviest(config, work)
        kept = self.activations(config).touched(load, work.catalogue.items_of_loss)
        return StepWork(self.flops(config, work), work.tokens_per_step, work.parts * kept)

    def option(self, config: ExperimentConfig, size: ModelSize, overrides: tuple[str, ...]) -> Option | None:
        """One way to run, worked out; None where a micro-batch cannot hold the longest window."""
        memory, work = self.memory(config, size), self.workload(config.batch.micro_batches_per_step)
        if memory is None or work is None:
            return None
        step = self.step_work(config, work)
        time = predict_step(config, size, step, machine=self.machine, calibration=self.calibration)
        return Option(
            engine=engine_words(config),
            overrides=overrides,
            config=config,
            memory=memory,
            time=time,
            work=step,
            available_bytes=self.machine.memory_bytes,
            host_bytes=self.machine.host_memory_bytes,
        )


def predict_here(config: ExperimentConfig, calibration: Calibration | None = None) -> Option | None:
    """The config as it is on this machine, on workers of its own cores; None where no window fits a micro-batch.

    Rates are assumed where there is no calibration. Raises DataError when the data set is not prepared.
    """
    check_known(config)
    machine, windows = this_machine(config, measure=False), read_windows(config)
    rates = calibration or assumed(machine)
    return Estimator(windows, machine, rates).option(config, model_size(config, windows.catalogue), ())


def on_machine(config: ExperimentConfig, machine: Machine) -> ExperimentConfig:
    """The config with a worker for each that the machine has, and as many micro-batches at least."""
    workers, parts = machine.workers, config.batch.micro_batches_per_step
    first = parts if parts % workers == 0 else shared_parts(config, workers)[0]
    values = config.model_dump(mode="json")
    values["cluster"] |= {"workers": workers, "gpus_per_worker": 1.0 if machine.on_gpu else 0.0}
    values["batch"] |= {"micro_batches_per_step": first, "packed_parts": None}
    return config_from_dict(values)


def make_plan(
    config: ExperimentConfig,
    windows: Windows,
    machine: Machine,
    calibration: Calibration | None = None,
    *,
    engines_only: bool = False,
) -> Plan:
    """All options for a config on a machine; `engines_only` keeps its micro-batches and recomputation.

    Raises ConfigError when no number of micro-batches suits the workers.
    """
    check_known(config)
    config = on_machine(config, machine)
    rates = calibration or assumed(machine)
    estimator = Estimator(windows, machine, rates)
    size = model_size(config, windows.catalogue)
    found = []
    for overrides in _variants(config, machine, engines_only=engines_only):
        try:
            variant = config_from_dict(apply_overrides(config.model_dump(mode="json"), overrides))
        except ConfigError:
            continue  # this optimizer or validation does not go with this engine
        option = estimator.option(variant, size, overrides)
        if option is not None:
            found.append(option)
    found.sort(key=lambda one: (not one.fits, -one.events_per_s, one.memory.total))
    work = estimator.workload(config.batch.micro_batches_per_step)
    if work is None or not found:
        raise ConfigError("No number of micro-batches holds the longest window; raise batch.tokens_per_step.")
    return Plan(machine, rates, size, estimator.flops(config, work), tuple(found))


def _variants(config: ExperimentConfig, machine: Machine, *, engines_only: bool) -> Iterator[tuple[str, ...]]:
    """Overrides of every option."""
    precision = {"precision": config.engine.precision, "matmul_precision": config.engine.matmul_precision}
    engines: list[dict[str, Any]] = [{"name": "torch", **precision}]
    engines += [{"name": "deepspeed", "zero_stage": stage, **precision} for stage in range(4)]
    if machine.on_gpu:
        engines += [{**engine, "offload_optimizer": True} for engine in engines[2:]]
    parts = [config.batch.micro_batches_per_step] if engines_only else shared_parts(config, machine.workers)
    recompute: list[str | None] = [None]
    if hasattr(config.model, "recompute") and not engines_only:
        recompute = ["none", "block"]
    for engine in engines:
        text = ", ".join(f"{name}: {str(value).lower()}" for name, value in engine.items())
        for count in parts:
            for again in recompute:
                more = () if again is None else (f"model.recompute={again}",)
                yield (f"engine={{{text}}}", f"batch.micro_batches_per_step={count}", *more)
