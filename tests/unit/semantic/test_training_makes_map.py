"""Training makes the map that it lacks, keeps the one that is there, and refuses that of another catalogue."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from semantic_sets import map_config, nested_vectors, write_set

from genrec.config import ExperimentConfig
from genrec.data.manifest import load_manifest
from genrec.errors import DataError
from genrec.semantic import tokenize as tokenize_module
from genrec.semantic.ids import load_semantic_ids
from genrec.semantic.tokenize import ensure_map
from genrec.training.start import check_fit
from genrec.tuning.space import config_with

CODES = ("model={name: code-decoder, dim: 8, num_layers: 1, num_heads: 2}", "loss={name: full-softmax}")


def config_of(folder: Path, num_items: int, *overrides: str) -> ExperimentConfig:
    vectors = nested_vectors(num_items, seed=num_items)
    return map_config(write_set(folder / f"set{num_items}", num_items, vectors), *overrides)


def test_the_missing_map_is_made_once(tmp_path: Path) -> None:
    config, said = config_of(tmp_path, 60, *CODES), []
    ensure_map(config, say=said.append)
    made = load_semantic_ids(tmp_path / "map")
    assert made.num_items == 60
    assert len(said) == 1 and "health.html says how good they are" in said[0]
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "map").iterdir()}
    ensure_map(config, say=said.append)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "map").iterdir()} == times
    assert len(said) == 1
    check_fit(config, load_manifest(config.data.prepared))


def test_a_run_that_waited_for_another_takes_its_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both looked before there was a map; the second gets the lock when the first has made it."""
    config = config_of(tmp_path, 60, *CODES)
    work_folder, made = tokenize_module.work_folder, []

    @contextmanager
    def second(target: Path) -> Iterator[Path]:
        if not made:
            made.append(True)
            ensure_map(config)
        with work_folder(target) as work:
            yield work

    monkeypatch.setattr(tokenize_module, "work_folder", second)
    monkeypatch.setattr(tokenize_module, "_fit", count_calls(tokenize_module._fit, fits := []))
    said: list[str] = []
    ensure_map(config, say=said.append)
    assert load_semantic_ids(tmp_path / "map").num_items == 60
    assert not said and len(fits) == 1, "the second makes nothing"


def count_calls(function: Callable[..., Any], calls: list[None]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return function(*args, **kwargs)

    return counted


def test_a_map_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    ensure_map(config_of(tmp_path, 60, *CODES))
    more = (f"semantic_ids.path={tmp_path / 'map'}", "semantic_ids.tokenizer.iterations=7")
    other = config_of(tmp_path / "again", 60, *CODES, *more)
    with pytest.raises(DataError, match=r"made with another tokenizer \(iterations: .* -> 7\).*--overwrite"):
        ensure_map(other)


def test_a_map_that_may_know_the_validation_events_is_for_refits_only(tmp_path: Path) -> None:
    refit = config_of(tmp_path, 60, *CODES, "sequence.train_on=train+validation")
    ensure_map(refit)
    plain = config_of(tmp_path / "again", 60, *CODES, f"semantic_ids.path={tmp_path / 'map'}")
    ensure_map(plain)  # made of vectors that no run has learned
    made = load_semantic_ids(tmp_path / "map")
    replace(made, origin={**made.origin, "vectors": {"name": "export", "path": "runs/x"}}).save(tmp_path / "map")
    with pytest.raises(DataError, match=r"made for refits.*train_on=train"):
        ensure_map(plain)
    ensure_map(refit)


def test_a_trial_that_takes_another_map_can_be_trained_by_itself(tmp_path: Path) -> None:
    """A sweep searches semantic_ids.path: what it writes down names the tokenizer of the map that it has chosen."""
    config = config_of(tmp_path, 60, *CODES)
    other = f"semantic_ids.path={tmp_path / 'other'}"
    made = config_of(tmp_path / "again", 60, *CODES, other, "semantic_ids.tokenizer.sizes=[5, 3]")
    ensure_map(made)
    chosen = config_with(config.model_dump(mode="json"), {"semantic_ids.path": str(tmp_path / "other")}, "a trial")
    assert chosen.semantic_ids is not None and made.semantic_ids is not None
    assert chosen.semantic_ids.tokenizer == made.semantic_ids.tokenizer
    ensure_map(chosen)
    missing = config_with(config.model_dump(mode="json"), {"semantic_ids.path": str(tmp_path / "no")}, "a trial")
    with pytest.raises(DataError, match="holds no map of semantic ids that can be read"):
        check_fit(missing, load_manifest(config.data.prepared))


def test_a_model_without_codes_needs_no_map(tmp_path: Path) -> None:
    ensure_map(config_of(tmp_path, 60))
    assert not (tmp_path / "map").exists()


def test_unhealthy_codes_stop_the_start(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at most 1 by max_bucket"):
        ensure_map(config_of(tmp_path, 60, *CODES, "semantic_ids.health.max_bucket=1"))
    assert not (tmp_path / "map").exists()


def test_the_map_of_another_catalogue_is_refused(tmp_path: Path) -> None:
    ensure_map(config_of(tmp_path, 60, *CODES))
    grown = config_of(tmp_path, 61, *CODES)
    with pytest.raises(DataError, match=r"60 items and .*set61 has 1 more; run `genrec tokenize CONFIG --extend`"):
        check_fit(grown, load_manifest(grown.data.prepared))
    smaller = config_of(tmp_path, 59, *CODES)
    with pytest.raises(DataError, match=r"is of another catalogue than .*set59 \(60 items, 59 there"):
        check_fit(smaller, load_manifest(smaller.data.prepared))
