"""`--launcher local` with a range of workers: any number in it, and no other."""

import pytest

from genrec.errors import ConfigError
from genrec.run_dir import run_dir_of
from genrec.training.checkpoint import read_info
from genrec.training.checkpoint_store import CheckpointStore
from genrec.training.local import fit
from genrec.training.start import open_run_directory


@pytest.fixture
def config(tmp_path, write_prepared, make_config):
    prepared = write_prepared(tmp_path / "set", [[1, 2, 3, 4, 5]] * 10)
    batch = "batch.micro_batches_per_step=6"
    return lambda workers: make_config(
        prepared, "engine={name: torch}", batch, f"cluster.workers={workers}", f"runs_dir={tmp_path / 'runs'}"
    )


@pytest.mark.parametrize(
    ("processes", "workers", "wanted"), [(1, [2, 3], "2 to 3"), (4, [1, 3], "1 to 3"), (2, 3, "3")]
)
def test_a_number_outside_is_refused(monkeypatch, config, processes: int, workers, wanted: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(ConfigError, match=rf"runs {processes} worker.*cluster.workers is {wanted}; .*torchrun"):
        fit(config(workers), run_dir_of(config(workers)), 0.0)


def test_one_process_is_one_of_a_range(config) -> None:
    run = open_run_directory(config([1, 3]), fresh=False, say=lambda _: None)
    fit(config([1, 3]), run, 0.0)
    store = CheckpointStore(run.checkpoints_path)
    assert read_info(store, store.names()[-1]).workers == 1
