"""The engine for `engine.name: auto`, and the refusal of a config that cannot fit this machine."""

from genrec.config import ExperimentConfig, config_from_dict
from genrec.errors import ConfigError
from genrec.planning.calibration import assumed
from genrec.planning.machine import Machine, this_machine
from genrec.planning.model_size import model_size
from genrec.planning.planner import Estimator, Option, Plan, make_plan
from genrec.planning.text import size_text
from genrec.planning.workload import read_windows
from genrec.training.start import engine_words


def pick_engine(config: ExperimentConfig) -> tuple[ExperimentConfig, str]:
    """The config with the engine that is fastest of those that fit, and a sentence that says why.

    Micro-batches and everything else stay. Rates are assumed and nothing is measured, so a machine gives the same
    answer every time as long as the same engines fit its free memory. Raises ConfigError when none does.
    """
    plan = make_plan(config, read_windows(config), this_machine(config, measure=False), engines_only=True)
    pick = plan.pick
    if pick is None:
        raise ConfigError(_refusal(config, plan, min(plan.options, key=lambda one: one.memory.total)))
    others = [one for one in plan.options if not one.fits]
    left_out = f"; {', '.join(one.engine for one in others)} would not fit" if others else ""
    why = "it is the fastest" if len(plan.options) > len(others) + 1 else "it is the only one that fits"
    values = config.model_dump(mode="json") | {"engine": pick.config.engine.model_dump(mode="json")}
    return config_from_dict(values), (
        f"engine: auto picked {pick.engine} because {why} of {len(plan.options)} on {plan.machine.name} "
        f"({size_text(pick.memory.total)} of {size_text(pick.available_bytes)} a worker){left_out}."
    )


def refuse_what_cannot_fit(config: ExperimentConfig, machine: Machine | None = None) -> None:
    """Raises ConfigError when a worker needs more memory than it can have on a machine, with the nearest that fits.

    The machine is this one, unless another is given.

    What libraries and the C library's holes take is left out of what is needed, because it is the least certain.
    """
    machine = machine or this_machine(config, measure=False)
    if machine.on_gpu != (config.cluster.gpus_per_worker > 0):
        return  # the launcher says that there is no GPU
    windows = read_windows(config)
    estimator = Estimator(windows, machine, assumed(machine))
    option = estimator.option(config, model_size(config, windows.catalogue), ())
    if option is not None and (option.memory.least > option.available_bytes or option.memory.host > option.host_bytes):
        raise ConfigError(_refusal(config, make_plan(config, windows, machine), option))


def _refusal(config: ExperimentConfig, plan: Plan, option: Option) -> str:
    """One sentence: what is needed, what there is, and the nearest config that fits."""
    part = max(option.memory.parts().items(), key=lambda item: item[1])
    head = (
        f"A worker needs at least {size_text(option.memory.least)} with {engine_words(option.config)} and "
        f"batch.micro_batches_per_step={option.config.batch.micro_batches_per_step} "
        f"({size_text(part[1])} of it {part[0].replace('_', ' ')}), and has {size_text(option.available_bytes)}"
    )
    nearest = _nearest(config, plan)
    if nearest is None:
        return (
            f"{head}; no engine and no number of micro-batches fits, so use a smaller model.dim, fewer items "
            "(data.min_item_events), or a machine with more memory."
        )
    return f"{head}; use {nearest}, which needs less (`genrec plan` shows all that fit)."


def _nearest(config: ExperimentConfig, plan: Plan) -> str | None:
    """The overrides of the option that fits and changes the fewest settings, the fastest of equals."""
    changes = [_changes(config, one.config) for one in plan.options if one.fits]
    changes.sort(key=len)
    return " ".join(changes[0]) if changes else None


def _changes(old: ExperimentConfig, new: ExperimentConfig) -> tuple[str, ...]:
    """The overrides that turn a config into another: micro-batches, recomputation, engine."""
    found = []
    if old.batch.micro_batches_per_step != new.batch.micro_batches_per_step:
        found.append(f"batch.micro_batches_per_step={new.batch.micro_batches_per_step}")
    if (again := getattr(new.model, "recompute", None)) != getattr(old.model, "recompute", None):
        found.append(f"model.recompute={again}")
    before, after = old.engine.model_dump(mode="json"), new.engine.model_dump(mode="json")
    if before["name"] != after["name"]:
        found.append(f"engine.name={after['name']}")
        before = {}
    names = [name for name in ("zero_stage", "offload_optimizer") if name in after]
    found += [f"engine.{name}={str(after[name]).lower()}" for name in names if before.get(name) != after[name]]
    return tuple(found)
