"""A new run begins with an export's weights: items by their ids, types and actions by their names, or not at all."""

from pathlib import Path

import numpy as np
import prepared_sets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from genrec.config import ExperimentConfig
from genrec.data.item_types import read_item_types
from genrec.data.item_vectors import vectors_for
from genrec.data.manifest import Manifest, load_manifest
from genrec.data.schema import ITEMS_FILE
from genrec.errors import ConfigError, DataError, RunError
from genrec.inference.export import read_export, write_export
from genrec.models.base import SequenceModel
from genrec.models.build import build_model
from genrec.training.start import open_run_directory
from genrec.training.state import TrainState, export_info
from genrec.training.warm_start import ITEM_TABLE, check_start, warm_start

NUM_OLD = 12
WITH_TYPES = ("inputs.item_types=true", "inputs.actions=true")


def build(config: ExperimentConfig, seed: int) -> tuple[SequenceModel, Manifest]:
    manifest = load_manifest(config.data.prepared)
    torch.manual_seed(seed)
    prepared = config.data.prepared
    types, vectors = read_item_types(prepared), vectors_for(config, prepared)
    return build_model(config, manifest.num_items, types, len(manifest.actions), vectors), manifest


def export(config: ExperimentConfig, folder: Path, actions: tuple[str, ...] = ("play",)) -> SequenceModel:
    model, manifest = build(config, seed=5)
    info = export_info(TrainState(step=7), "ndcg@10", manifest.content_hash, actions)
    write_export(folder, model.state_dict(), config, Path(config.data.prepared) / ITEMS_FILE, info)
    return model


def set_items(prepared: Path, **columns: list) -> None:
    """Replaces columns of the item table of a prepared set."""
    items = pq.read_table(prepared / ITEMS_FILE)
    for name, values in columns.items():
        place = items.schema.get_field_index(name)
        items = items.set_column(place, items.schema.field(name), pa.array(values, items.schema.field(name).type))
    pq.write_table(items, prepared / ITEMS_FILE)


@pytest.fixture
def old(tmp_path: Path, write_prepared) -> Path:
    """12 items with the ids 10, 20, ..., 120."""
    prepared = write_prepared(tmp_path / "old", [[1, 2, 3, 4], [5, 6, 7, 8]], num_items=NUM_OLD)
    set_items(prepared, type=["track", "episode"] * 6)
    return prepared


@pytest.fixture
def new(tmp_path: Path, write_prepared) -> Path:
    """The ids 30 and 10, and two that the old set does not have."""
    prepared = write_prepared(tmp_path / "new", [[1, 2, 3, 4]])
    set_items(prepared, item=[30, 7, 10, 8], type=["episode", "track", "book", None])
    return prepared


def test_items_go_by_id_and_new_ones_keep_their_fresh_rows(tmp_path: Path, old: Path, new: Path, make_config) -> None:
    given = export(make_config(old), tmp_path / "export").state_dict()
    config = make_config(new, f"train.start_from={tmp_path / 'export'}")
    model, manifest = build(config, seed=9)
    fresh = {name: weight.clone() for name, weight in model.state_dict().items()}
    summary = warm_start(model, config, manifest)
    assert summary is not None
    assert (summary.matched_items, summary.num_items, summary.step) == (2, 4, 7)
    assert "2 of 4 items matched, 2 are new" in summary.sentence
    assert summary == check_start(config, manifest)
    table = model.item_table.weight
    assert torch.equal(table[[0, 1, 3]], given[ITEM_TABLE][[0, 3, 1]])
    assert torch.equal(table[[2, 4]], fresh[ITEM_TABLE][[2, 4]])
    others = [name for name in fresh if name != ITEM_TABLE]
    assert others
    assert all(torch.equal(model.state_dict()[name], given[name]) for name in others)


def test_weights_that_know_the_validation_events_are_for_refits_only(
    tmp_path: Path, old: Path, new: Path, make_config
) -> None:
    refitted = "sequence.train_on=train+validation"
    export(make_config(old, refitted), tmp_path / "export")
    start = f"train.start_from={tmp_path / 'export'}"
    with pytest.raises(ConfigError, match=r"train.start_from names .*export, which was refitted on validation events"):
        check_start(make_config(new, start), load_manifest(new))
    assert check_start(make_config(new, start, refitted), load_manifest(new)) is not None


def test_types_and_actions_go_by_name(tmp_path: Path, old: Path, new: Path, make_config) -> None:
    given = export(make_config(old, *WITH_TYPES), tmp_path / "export", actions=("skip", "play")).state_dict()
    config = make_config(new, *WITH_TYPES, f"train.start_from={tmp_path / 'export'}")
    model, manifest = build(config, seed=9)
    fresh = {name: weight.clone() for name, weight in model.state_dict().items()}
    warm_start(model, config, manifest)
    found = model.state_dict()
    types, actions = (next(n for n in found if n.endswith(f"{kind}.weight")) for kind in ("item_type", "action"))
    # here: episode 1, track 2, book 3; in the export: track 1, episode 2
    assert torch.equal(found[types][:3], given[types][[0, 2, 1]])
    assert torch.equal(found[types][3:], fresh[types][3:])
    assert torch.equal(found[actions][1], given[actions][2])
    buffer = next(name for name in found if name.endswith("features.item_types"))
    assert torch.equal(found[buffer], fresh[buffer])


def test_rows_of_the_action_head_go_by_name(tmp_path: Path, old: Path, new: Path, make_config) -> None:
    head = "heads={action: {}}"
    given = export(make_config(old, head), tmp_path / "export", actions=("skip", "play")).state_dict()
    config = make_config(new, head, f"train.start_from={tmp_path / 'export'}")
    model, manifest = build(config, seed=9)
    fresh = {name: weight.clone() for name, weight in model.state_dict().items()}
    warm_start(model, config, manifest)
    found = model.state_dict()
    scores = "heads.action.scores.weight"
    assert torch.equal(found[scores][1], given[scores][2])  # play: 1 here, 2 in the export
    assert torch.equal(found[scores][2:], fresh[scores][2:])
    inner = "heads.action.inner.weight"
    assert torch.equal(found[inner], given[inner]) and not torch.equal(found[inner], fresh[inner])


@pytest.mark.parametrize(("there", "here"), [("{}", "{action: {}}"), ("{action: {}}", "{}")])
def test_heads_may_come_and_go(tmp_path: Path, old: Path, make_config, there: str, here: str) -> None:
    given = export(make_config(old, f"heads={there}"), tmp_path / "export").state_dict()
    config = make_config(old, f"heads={here}", f"train.start_from={tmp_path / 'export'}")
    model, manifest = build(config, seed=9)
    fresh = {name: weight.clone() for name, weight in model.state_dict().items()}
    warm_start(model, config, manifest)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, fresh[name] if name.startswith("heads.") else given[name])


def test_what_was_learned_of_item_vectors_goes_along(tmp_path: Path, old: Path, new: Path, make_config) -> None:
    rng = np.random.default_rng(0)
    for folder, num_items in ((old, NUM_OLD), (new, 4)):
        prepared_sets.give_vectors(
            folder, rng.normal(size=(num_items + 1, 3)) * (np.arange(num_items + 1) > 0)[:, None]
        )
    given = export(make_config(old, *prepared_sets.WITH_VECTORS), tmp_path / "export").state_dict()
    config = make_config(
        new, "data.item_vectors.path=elsewhere", "inputs.item_vectors={}", f"train.start_from={tmp_path / 'export'}"
    )
    model, manifest = build(config, seed=9)
    summary = warm_start(model, config, manifest)
    assert summary is not None and summary.matched_items == 2
    found = model.state_dict()
    assert torch.equal(found["item_table.projection"], given["item_table.projection"])
    assert torch.equal(found[ITEM_TABLE][[1, 3]], given[ITEM_TABLE][[3, 1]])
    # Vectors of another length are those of another model.
    prepared_sets.give_vectors(new, np.ones((5, 4)) * (np.arange(5) > 0)[:, None])
    with pytest.raises(RunError, match=r"item_table.projection has shape \[8, 3\] and the model's has \[8, 4\]"):
        warm_start(*build(config, seed=9)[:1], config, load_manifest(new))


def test_without_the_setting_nothing_happens(old: Path, make_config) -> None:
    config = make_config(old)
    model, manifest = build(config, seed=9)
    before = model.item_table.weight.clone()
    assert warm_start(model, config, manifest) is None
    assert check_start(config, manifest) is None
    assert torch.equal(model.item_table.weight, before)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("model.dim=16", r"(?s)another model.*model.dim: 8 -> 16"),
        ("sequence.max_length=6", r"sequence.max_length: 8 -> 6"),
        ("model={name: hstu, time_bias: false}", r"model.name: 'sasrec' -> 'hstu'"),
        ("inputs.time_features=[hour]", r"inputs.time_features"),
    ],
)
def test_another_model_is_refused_before_any_worker_starts(
    tmp_path: Path, old: Path, make_config, change: str, expected: str
) -> None:
    export(make_config(old), tmp_path / "export")
    config = make_config(old, change, f"train.start_from={tmp_path / 'export'}")
    with pytest.raises(RunError, match=expected):
        check_start(config, load_manifest(old))
    with pytest.raises(RunError, match=expected):
        open_run_directory(config, fresh=False, say=lambda _: None)


def test_dropout_and_loss_may_differ(tmp_path: Path, old: Path, make_config) -> None:
    export(make_config(old), tmp_path / "export")
    config = make_config(
        old,
        "model.dropout=0.5",
        "loss.temperature=0.5",
        "sequence.window=random",
        f"train.start_from={tmp_path}/export",
    )
    said: list[str] = []
    open_run_directory(config, fresh=False, say=said.append)
    assert "12 of 12 items matched, 0 are new" in said[-1]


def test_no_common_item_is_refused(tmp_path: Path, old: Path, write_prepared, make_config) -> None:
    export(make_config(old), tmp_path / "export")
    named = write_prepared(tmp_path / "named", [[1, 2, 3, 4]], string_ids=True)
    config = make_config(named, f"train.start_from={tmp_path / 'export'}")
    with pytest.raises(RunError, match=r"knows none of the 4 items .*ids there are int64, here string"):
        check_start(config, load_manifest(named))


def test_weights_of_another_shape_or_not_finite_are_refused(tmp_path: Path, old: Path, make_config) -> None:
    model = export(make_config(old), tmp_path / "export")
    config = make_config(old, f"train.start_from={tmp_path / 'export'}")
    found = read_export(tmp_path / "export")
    name = next(n for n, _ in model.named_parameters() if n != ITEM_TABLE)
    for bad, expected in ((torch.zeros(3, 3, 3), "has shape"), (found.state_dict[name] / 0, "not finite")):
        write_export(tmp_path / "export", found.state_dict | {name: bad}, found.config, old / ITEMS_FILE, {"step": 1})
        with pytest.raises(RunError, match=expected):
            warm_start(*build(config, seed=9)[:1], config, load_manifest(old))


def test_a_path_without_an_export_gets_a_sentence(tmp_path: Path, old: Path, make_config) -> None:
    config = make_config(old, f"train.start_from={tmp_path / 'absent'}")
    with pytest.raises(DataError, match="is not an export"):
        check_start(config, load_manifest(old))
