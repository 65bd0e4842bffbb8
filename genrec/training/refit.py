"""A refit: the run once more from the start, on the validation events too, for as long as its best model was trained.

Validation has chosen how long; afterwards its events are the newest ones there are, and a model that is served should
know them. The schedule is the run's own, fitted to the shorter run, so that it comes to its end.
"""

import math

from genrec.config import ExperimentConfig, LeaveOneOutSplit, config_from_dict
from genrec.data.plan import make_plan
from genrec.errors import ConfigError, RunError
from genrec.inference.export import read_export
from genrec.run_dir import RunDir

NAME_SUFFIX = "-refit"


def refit_config(run: RunDir, config: ExperimentConfig) -> ExperimentConfig:
    """The config of the refit of a finished run.

    Raises RunError when the run is not finished, ConfigError when it is a refit or its split cannot be refitted.
    """
    if config.refits:
        raise ConfigError(f"{run.root} is a refit itself; give the run that it was made of.")
    if not isinstance(config.data.split, LeaveOneOutSplit):
        raise ConfigError(
            f"{run.root} was trained with data.split {config.data.split.name}; only runs of a leave-one-out split can "
            "be refitted: move data.split.validation_from to a later second and train again."
        )
    if not run.evaluation_path.is_file():
        raise RunError(f"{run.root} is not finished, so its best step is not known; finish it with `genrec train`.")
    info = read_export(run.export_path).info
    epochs = float(info["epoch"])
    values = config.model_dump(mode="json")
    values["name"] = config.name + NAME_SUFFIX
    values["sequence"]["train_on"] = "train+validation"
    values["evaluation"]["validation"] = "inline"
    values["train"] |= {"patience": None, "max_epochs": math.ceil(epochs), "max_steps": None, "min_steps": None}
    origin = f"the refit of {run.root}"
    if not epochs.is_integer():
        values["train"]["max_steps"] = _steps(config_from_dict(values, origin), epochs)
    return config_from_dict(values, origin)


def _steps(config: ExperimentConfig, epochs: float) -> int:
    """Steps of so many passes, the last of them a part of one; an epoch of a refit has more steps than the run's."""
    plan = make_plan(config)
    whole = plan.num_steps(math.floor(epochs), None) if epochs >= 1 else 0
    last = plan.num_steps(math.ceil(epochs), None) - whole
    return whole + max(1, round(last * (epochs % 1)))
