"""Shares of the targets in a mixture are those that its plan deals out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from genrec.config import ExperimentConfig
from genrec.data import target_shares as module
from genrec.data.manifest import load_manifest
from genrec.data.plan import make_plan
from genrec.data.prepare import ensure_prepared
from genrec.data.schema import ITEMS_FILE, PART_COUNTS_FILE
from genrec.data.stream import local_tables, worker_batches
from genrec.data.target_shares import target_shares
from genrec.errors import DataError

SETS = {"music": (range(1, 7), 400), "talk": (range(5, 11), 40)}
"""The items of each set, and its users; items 5 and 6 are in both."""


@pytest.fixture
def mixed(
    tmp_path: Path, write_prepared: Callable[..., Path], make_config: Callable[..., ExperimentConfig]
) -> Callable[..., ExperimentConfig]:
    """`mixed("sequence.mix=...")`: a config over the mixture of both sets."""
    generator = np.random.default_rng(0)
    for name, (items, users) in SETS.items():
        chances = np.arange(len(items), 0, -1) / sum(range(len(items) + 1))
        sequences = generator.choice(np.array(items), (users, 12), p=chances).tolist()
        write_prepared(tmp_path / name, sequences, num_items=10, rows_per_group=10)
    sets = ", ".join(f"{name}: {tmp_path / name}" for name in SETS)
    source = f"data.source={{name: mixture, sets: {{{sets}}}}}"

    def config(*overrides: str) -> ExperimentConfig:
        made = make_config(tmp_path / "mixed", source, "sequence.max_length=16", *overrides)
        ensure_prepared(made.data, say=lambda _: None)
        return made

    return config


def test_they_are_how_often_an_item_is_a_target(mixed: Callable[..., ExperimentConfig]) -> None:
    config = mixed("sequence.mix={music: 1, talk: 1}", "batch.tokens_per_step=256", "batch.micro_batches_per_step=1")
    manifest = load_manifest(config.data.prepared)
    shares = target_shares(config, manifest)
    assert shares is not None and shares.sum() == pytest.approx(1) and shares[0] == 0
    plan = make_plan(config)
    span = {"start_step": 0, "end_step": plan.num_steps(4, None), "rank": 0, "workers": 1}
    counts = np.zeros(manifest.num_items + 1)
    for _, batch in worker_batches(local_tables(plan, **span), **span, parts=1):
        counts += np.bincount(batch.targets.numpy(), minlength=len(counts))
    assert counts.sum() > 10_000
    # A window's first event is no target, which moves an item's share a little.
    np.testing.assert_allclose(counts / counts.sum(), shares, atol=0.02)
    items = pq.read_table(Path(config.data.prepared) / ITEMS_FILE).to_pydict()
    by_events = np.array([0, *items["train_count"]]) / sum(items["train_count"])
    assert np.abs(by_events - shares).max() > 0.1


def test_a_share_of_nothing_and_no_mixture(mixed: Callable[..., ExperimentConfig]) -> None:
    plain = mixed()
    manifest = load_manifest(plain.data.prepared)
    assert target_shares(plain, manifest) is None
    alone = target_shares(mixed("sequence.mix={music: 2, talk: 0}"), manifest)
    assert alone is not None and np.count_nonzero(alone) == 6 and alone.sum() == pytest.approx(1)


def test_a_mixture_of_before_is_warned_about_and_a_damaged_one_refused(
    mixed: Callable[..., ExperimentConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(module.logger, "warning", lambda text, *values: said.append(text % values))
    config = mixed("sequence.mix={music: 1, talk: 1}")
    manifest, path = load_manifest(config.data.prepared), Path(config.data.prepared) / PART_COUNTS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    with pytest.raises(DataError, match=r"cannot be read.*--overwrite"):
        target_shares(config, manifest)
    np.save(path, np.ones((3, 2), dtype=np.int64))
    with pytest.raises(DataError, match=r"has the shape \[3, 2\] and the set 10 items in 2 parts"):
        target_shares(config, manifest)
    path.unlink()
    assert target_shares(config, manifest) is None
    assert len(said) == 1 and "prepared by an earlier version" in said[0]
    assert load_manifest(config.data.prepared) == manifest  # which set it is does not depend on the file
