"""Every YAML in configs/ is short, says how to run it and loads; a config builds its model, a sweep its trials."""

from pathlib import Path

import numpy as np
import pytest
import torch
from source_tree import ROOT

from genrec.config import load_config
from genrec.models.build import build_model
from genrec.planning.machine import read_cluster
from genrec.semantic.run_map import made_up_ids
from genrec.tuning.config import load_sweep
from genrec.tuning.sweep import check_sweep

CLUSTERS = sorted((ROOT / "configs" / "clusters").rglob("*.y*ml"))
FILES = sorted(set((ROOT / "configs").rglob("*.y*ml")) - set(CLUSTERS))
SWEEPS = [path for path in FILES if path.parent == ROOT / "configs" / "sweeps"]
CONFIGS = [path for path in FILES if path not in SWEEPS]
IDS = [str(path.relative_to(ROOT)) for path in CONFIGS]

MAX_CONFIG_LINES = 60
NUM_ITEMS = 1_000


def test_clusters_load() -> None:
    assert CLUSTERS
    for path in CLUSTERS:
        config = load_config(ROOT / "configs" / "quickstart.yaml")
        assert read_cluster(path, config).workers > 0
        assert str(path.relative_to(ROOT)) in path.read_text(encoding="utf-8").splitlines()[0]


def test_there_are_configs() -> None:
    assert ROOT / "configs" / "quickstart.yaml" in CONFIGS
    assert ROOT / "configs" / "sweeps" / "sasrec_ml1m.yaml" in SWEEPS


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_config_is_short_and_starts_with_its_command(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_CONFIG_LINES
    assert lines[0].startswith("# genrec "), f"the first line must be the command that runs it, not {lines[0]!r}"
    assert str(path.relative_to(ROOT)) in lines[0]


@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_config_loads_and_its_run_is_called_like_the_file(path: Path) -> None:
    assert load_config(path).name == path.stem


@pytest.mark.parametrize("path", SWEEPS, ids=[path.stem for path in SWEEPS])
def test_sweep_loads_and_its_trials_are_configs(path: Path) -> None:
    spec, base = load_sweep(path)
    assert spec.name == path.stem
    check_sweep(spec, base)


@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_model_builds_without_memory(path: Path) -> None:
    config = load_config(path)
    ids = made_up_ids(NUM_ITEMS, (256, 256, 256, 256)) if config.writes_codes else None
    with torch.device("meta"):
        types = np.zeros(NUM_ITEMS + 1, dtype=np.uint8)
        model = build_model(config, NUM_ITEMS, types, num_actions=3, semantic_ids=ids)
    parameters = list(model.parameters())
    assert parameters and all(parameter.is_meta for parameter in parameters)
    if ids is not None:
        return  # a row for every code, and perhaps none for items: tests/unit/models/test_code_models.py
    # The table has a row for every item and one for the padding.
    assert any(parameter.shape[0] >= NUM_ITEMS + 1 for parameter in parameters if parameter.ndim == 2)
