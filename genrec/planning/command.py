"""What `genrec plan` does: reads the set, the hardware and a calibration, and plans."""

from pathlib import Path

from genrec.config import ExperimentConfig
from genrec.errors import ConfigError
from genrec.planning.calibration import (
    CALIBRATION_FILE,
    Calibration,
    assumed,
    fitted,
    measured_step_s,
    read_calibration,
    save_calibration,
)
from genrec.planning.machine import Machine, read_cluster, this_machine
from genrec.planning.model_size import model_size
from genrec.planning.planner import Estimator, Plan, make_plan
from genrec.planning.scaling import Scaling, scaling_of
from genrec.planning.workload import read_windows


def plan_config(
    config: ExperimentConfig, cluster: Path | None, calibrate: Path | None, calibration: Path | None
) -> tuple[Plan, Scaling | None, Path | None]:
    """The plan, how it scales on a described cluster, and the calibration's file where one was made.

    Raises ConfigError or DataError when something of it cannot be read.
    """
    if calibrate is not None and calibration is not None:
        raise ConfigError("--calibrate measures anew, --calibration reads an earlier one; give one of them.")
    windows = read_windows(config, repeats=cluster is not None)
    machine = this_machine(config, measure=True) if cluster is None else read_cluster(cluster, config)
    rates, saved = None if calibration is None else read_calibration(calibration), None
    if calibrate is not None:
        rates, saved = calibration_of(calibrate, machine), calibrate / CALIBRATION_FILE
        save_calibration(saved, rates)
    plan = make_plan(config, windows, machine, rates)
    return plan, None if cluster is None else scaling_of(plan), saved


def calibration_of(run: Path, machine: Machine) -> Calibration:
    """The rates with which the prediction of a finished run is what it took, on a machine like its own."""
    config, event_s, workers = measured_step_s(run)
    values = config.model_copy(update={"cluster": config.cluster.model_copy(update={"workers": workers})})
    where = this_machine(values, measure=True) if machine.nodes == 1 else machine
    base = assumed(where)
    estimator = Estimator(read_windows(values), where, base)
    option = estimator.option(values, model_size(values, estimator.windows.catalogue), ())
    if option is None:
        raise ConfigError(f"{run} cannot be planned again, because its micro-batches do not hold its longest window.")
    step_s = option.tokens_per_step * event_s
    busy = option.time.compute + option.time.overhead
    return fitted(base, step_s=step_s, predicted_s=option.time.total, compute_s=busy, source=f"measured: {run}")
