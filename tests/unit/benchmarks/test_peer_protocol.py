import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from peer_protocol import (
    THROUGHPUT_MODELS,
    SteadyMeter,
    model_from_json,
    model_to_json,
    read_sequences,
    targets_per_epoch,
    training_parts,
)


class Clock:
    """Moments given beforehand."""

    def __init__(self, *moments: float) -> None:
        self.moments = iter(moments)

    def __call__(self) -> float:
        return next(self.moments)


def test_meter_counts_from_the_end_of_the_warmup_until_it_has_enough() -> None:
    meter = SteadyMeter(2, seconds=10, clock=Clock(100, 130, 134, 141), cpu_clock=Clock(1, 2, 20))
    assert [meter.batch_done(50), meter.batch_done(50), meter.batch_done(30), meter.batch_done(25)] == [
        False,
        False,
        False,
        True,
    ]
    reading = meter.reading()
    assert reading["seconds"] == 11
    assert reading["num_events"] == 55
    assert reading["num_batches"] == 2
    assert reading["events_per_s"] == 5
    assert reading["cores_used"] == pytest.approx(18 / 11)


def test_meter_without_a_batch_after_the_warmup_has_no_reading() -> None:
    meter = SteadyMeter(1, seconds=10, clock=Clock(100))
    meter.batch_done(50)
    with pytest.raises(ValueError, match="no batch after a warm-up of 1"):
        meter.reading()


def test_both_layouts_give_the_same_sequences_in_the_order_of_the_file(tmp_path: Path) -> None:
    pairs, lists = tmp_path / "pairs.txt.gz", tmp_path / "lists.txt"
    with gzip.open(pairs, "wt", encoding="utf-8") as file:
        file.write("7 30\n7 10\n2 30\n7 20\n")
    lists.write_text("7 30 10 20\n2 30\n", encoding="utf-8")
    for found in (read_sequences(pairs, "pairs"), read_sequences(lists, "lists")):
        assert [items.tolist() for items in found] == [[30, 10, 20], [30]]


def test_a_line_that_is_not_a_pair_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("1 2 3\n", encoding="utf-8")
    with pytest.raises(ValueError, match="`user item` expected, got '1 2 3'"):
        read_sequences(path, "pairs")


def test_training_leaves_two_events_out_and_counts_targets_of_the_last_window() -> None:
    sequences = [np.arange(9), np.arange(4), np.arange(2)]
    training = training_parts(sequences)
    assert [len(items) for items in training] == [7, 2, 2]
    assert targets_per_epoch(training, max_length=5) == 5 + 1 + 1


def test_a_model_crosses_the_command_line_unchanged() -> None:
    model = replace(THROUGHPUT_MODELS["hstu-sampled"], dropout=0.1)
    assert model_from_json(model_to_json(model)) == model
    with pytest.raises(TypeError):
        model_from_json('{"name": "x", "kind": "sasrec", "loss": "full-softmax", "width": 64}')
