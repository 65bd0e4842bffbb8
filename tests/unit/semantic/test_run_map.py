"""The map of a run: made-up ones, and those that are not the run's."""

from pathlib import Path

import numpy as np
import pytest

from genrec.config import ExperimentConfig, config_from_dict
from genrec.errors import DataError, RunError
from genrec.semantic.run_map import check_map, made_up_ids, semantic_ids_for


def config_with(path: Path, model: str = "code-decoder") -> ExperimentConfig:
    return config_from_dict(
        {
            "name": "test",
            "data": {"source": {"name": "synthetic"}, "prepared": "somewhere"},
            "semantic_ids": {"path": str(path)},
            "model": {"name": model},
            "loss": {"name": "full-softmax"},
            "train": {"max_steps": 1},
        }
    )


def test_made_up_ids_count_and_grow_the_first_level() -> None:
    ids = made_up_ids(13, (2, 2, 3))
    assert ids.sizes == (3, 2, 3)
    assert ids.codes[1:5].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0]]
    assert ids.codes[13].tolist() == [2, 0, 0]
    assert made_up_ids(12, (2, 2, 3)).sizes == (2, 2, 3)


def test_the_map_of_a_config_is_read_for_models_that_write_codes(tmp_path: Path) -> None:
    made_up_ids(13, (4, 2, 3)).save(tmp_path)
    ids = semantic_ids_for(config_with(tmp_path), 13)
    assert ids is not None
    np.testing.assert_array_equal(ids.codes, made_up_ids(13, (4, 2, 3)).codes)
    assert semantic_ids_for(config_with(tmp_path, "sasrec"), 13) is None
    with pytest.raises(DataError, match=r"has codes of 13 items, and somewhere has 14"):
        semantic_ids_for(config_with(tmp_path), 14)
    with pytest.raises(DataError, match="holds no map of semantic ids"):
        semantic_ids_for(config_with(tmp_path / "absent"), 13)


def test_another_map_is_refused() -> None:
    ids = made_up_ids(13, (4, 2, 3))
    check_map(ids.digest, ids, "The run")
    check_map(None, None, "The run")
    with pytest.raises(RunError, match=f"The run was trained with the map {ids.digest[:12]}, and .* holds none"):
        check_map(ids.digest, None, "The run")
    with pytest.raises(RunError, match=f"trained with the map none, and semantic_ids.path holds {ids.digest[:12]}"):
        check_map(None, ids, "The run")
