import itertools
from pathlib import Path

import numpy as np
import pytest

from genrec.config import config_from_dict
from peer_genrec import TIMED_LOG, batches, experiment, steady_reading, write_timed_log
from peer_protocol import THROUGHPUT_MODELS, PeerModel


def train_line(step: int, events_per_s: float) -> dict[str, object]:
    return {
        "kind": "train",
        "step": step,
        "elapsed_s": step * 2.0,
        "events_per_s": events_per_s,
        "data_wait_fraction": 0.02,
        "memory_bytes": 100,
    }


def test_reading_of_a_run_leaves_the_first_line_out_and_takes_the_harmonic_mean() -> None:
    records = [
        {"kind": "start"},
        train_line(5, 1.0),
        train_line(10, 20.0),
        train_line(15, 60.0),
        {"kind": "validation"},
    ]
    reading = steady_reading(records)
    assert reading["events_per_s"] == pytest.approx(30.0)
    assert (reading["num_batches"], reading["seconds"], reading["peak_memory_bytes"]) == (10, 20.0, 200)
    assert reading["data_wait_fraction"] == pytest.approx(0.02)


def test_a_run_with_the_warmup_alone_has_no_reading() -> None:
    with pytest.raises(ValueError, match="1 train lines"):
        steady_reading([train_line(5, 1.0)])


@pytest.mark.parametrize("name", THROUGHPUT_MODELS)
def test_every_compared_model_is_a_valid_config_of_equal_size(name: str, tmp_path: Path) -> None:
    config = config_from_dict(experiment(THROUGHPUT_MODELS[name], tmp_path))
    assert (config.model.dim, config.model.num_layers, config.model.num_heads) == (64, 2, 2)
    assert config.sequence.max_length == 200
    assert config.loss.name == THROUGHPUT_MODELS[name].loss


def test_batches_hold_last_windows_and_every_user_once_an_epoch() -> None:
    model = PeerModel("x", "sasrec", "full-softmax", max_length=3, batch_sequences=2)
    training = [np.arange(1, 8), np.array([20, 21]), np.array([9]), np.array([30, 31, 32])]
    epoch = list(itertools.islice(batches(training, model), 2))
    windows = {
        tuple(batch.items[first:last].tolist() + batch.targets[last - 1 : last].tolist())
        for batch in epoch
        for first, last in itertools.pairwise(batch.offsets.tolist())
    }
    assert windows == {(4, 5, 6, 7), (20, 21), (30, 31, 32)}
    assert [batch.num_sequences for batch in epoch] == [2, 1]
    assert all((batch.target_times == batch.times + 1).all() for batch in epoch)


def test_the_log_gets_seconds_that_keep_its_order(tmp_path: Path) -> None:
    write_timed_log(tmp_path, [np.array([7, 5]), np.array([5, 9, 7])])
    lines = (tmp_path / TIMED_LOG).read_text("utf-8").splitlines()
    assert lines == ["user,item,time", "0,7,1", "0,5,2", "1,5,3", "1,9,4", "1,7,5"]
