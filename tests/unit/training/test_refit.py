"""What a refit keeps of the run it is made of, and how long it goes on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from genrec.config import ExperimentConfig
from genrec.data.plan import make_plan
from genrec.errors import ConfigError, RunError
from genrec.inference.export import write_export
from genrec.run_dir import RunDir, config_differences
from genrec.training.refit import refit_config

SEQUENCES = [[user * 10 + place for place in range(1, 4 + user % 5)] for user in range(40)]

Finished = Callable[..., tuple[RunDir, ExperimentConfig]]


@pytest.fixture
def finished(
    tmp_path: Path, write_prepared: Callable[..., Path], make_config: Callable[..., ExperimentConfig]
) -> Finished:
    """`finished(epoch, *overrides)`: a run that was best after so many passes, and its config."""
    prepared = write_prepared(tmp_path / "set", SEQUENCES, num_items=400)

    def make(epoch: float, *overrides: str) -> tuple[RunDir, ExperimentConfig]:
        config = make_config(prepared, *overrides)
        run = RunDir(tmp_path / "run")
        run.root.mkdir()
        run.evaluation_path.write_text("{}", encoding="utf-8")
        write_export(run.export_path, {}, config, prepared / "items.parquet", {"step": 1, "epoch": epoch})
        return run, config

    return make


def test_it_lasts_as_long_as_was_best_and_no_validation_ends_it(finished: Finished) -> None:
    run, config = finished(
        2.0, "train.max_epochs=7", "train.min_steps=900", "train.patience=3", "train.start_from=runs/old"
    )
    refit = refit_config(run, config)
    assert refit.name == f"{config.name}-refit" and refit.refits
    assert (refit.train.max_epochs, refit.train.max_steps) == (2, None)
    assert (refit.train.min_steps, refit.train.patience) == (None, None)
    assert {text.partition(":")[0] for text in config_differences(config, refit)} == {
        "name",
        "sequence.train_on",
        "train.max_epochs",
        "train.max_steps",
        "train.min_steps",
        "train.patience",
    }


def test_a_part_of_a_pass_is_that_part_of_its_own_steps(finished: Finished) -> None:
    run, config = finished(1.5, "train.max_epochs=7", "batch.tokens_per_step=32", "batch.micro_batches_per_step=1")
    refit = refit_config(run, config)
    plan = make_plan(refit)
    first, both = plan.num_steps(1, None), plan.num_steps(2, None)
    assert both - first > 2
    assert refit.train.max_steps == first + round((both - first) / 2)


def test_a_run_without_a_result_is_refused(finished: Finished) -> None:
    run, config = finished(2.0)
    run.evaluation_path.unlink()
    with pytest.raises(RunError, match="is not finished, so its best step is not known"):
        refit_config(run, config)


def test_a_refit_and_a_split_by_time_are_refused(finished: Finished) -> None:
    run, config = finished(2.0)
    with pytest.raises(ConfigError, match="is a refit itself"):
        refit_config(run, refit_config(run, config))
    split = {"name": "global-time", "validation_from": 5, "test_from": 9}
    by_time = config.model_copy(update={"data": config.data.model_copy(update={"split": split})})
    with pytest.raises(ConfigError, match="only runs of a leave-one-out split"):
        refit_config(run, type(config).model_validate(by_time.model_dump(warnings=False)))
