"""The protocol card names everything that decides whether two numbers may be compared."""

from pathlib import Path

from genrec.config import GlobalTimeSplit
from genrec.data.manifest import VectorFacts, load_manifest
from genrec.evaluation.protocol import protocol_card, protocol_differences


def test_the_card_is_complete(tmp_path: Path, write_prepared, make_config) -> None:
    folder = write_prepared(tmp_path / "set", [[1, 2, 3, 4]] * 3)
    config = make_config(folder, "data.min_user_events=5", "data.min_item_events=5", "data.min_value=4", "seed=7")
    manifest = load_manifest(folder)
    card = protocol_card(config, manifest, False, "test", 400)
    assert card == {
        "role": "test",
        "split": "leave-one-out: a user's last event is test, the one before it validation, the rest training",
        "filters": "users with >= 5 and items with >= 5 events, repeated until both hold; events with a value >= 4",
        "order": "the log's own order, never sorted again",
        "history": "every event before the target, the validation item included",
        "window_events": 8,
        "inputs": "items",
        "uses_query_time": False,
        "targets": "events of every action",
        "candidates": "the whole catalogue, 4 items, none sampled",
        "filter_seen": True,
        "repeated_targets": "kept: a target that the user has seen before stays in the ranking",
        "ties": "against the model: items that score the same as the target rank before it",
        "sample": "every held-out user",
        "epoch_choice": "the step with the best ndcg@10 on validation: step 400",
        "refit_on_validation": False,
        "num_seeds": 1,
        "seed": 7,
        "data_hash": manifest.content_hash,
    }


def test_the_card_follows_the_data_and_the_options(tmp_path: Path, write_prepared, make_config) -> None:
    split = GlobalTimeSplit(name="global-time", validation_from=100, test_from=200)
    folder = write_prepared(tmp_path / "set", [[1, 2]], times=[[50, 150]], split=split)
    config = make_config(folder, "evaluation.filter_seen=false")
    card = protocol_card(config, load_manifest(folder), True, "validation", max_users=20)
    assert card["split"] == (
        "global-time: training before 100 s, validation before 200 s, then test; a user's first event in a period is "
        "the target"
    )
    assert card["filters"] == "none"
    assert card["order"] == "by time, stable: events of the same second keep the log's order"
    assert card["history"] == "every event before the target"
    assert card["uses_query_time"] is True
    assert card["filter_seen"] is False
    assert card["sample"] == "a fixed sample of at most 20 users"
    assert card["epoch_choice"] == "none: the newest weights"


def test_the_card_says_where_the_weights_came_from(tmp_path: Path, write_prepared, make_config) -> None:
    folder = write_prepared(tmp_path / "set", [[1, 2, 3, 4]] * 3)
    manifest = load_manifest(folder)
    fresh = protocol_card(make_config(folder), manifest, False, "test")
    warm = protocol_card(make_config(folder, "train.start_from=runs/old"), manifest, False, "test")
    assert "starts_from" not in fresh and warm["starts_from"].startswith("the weights of runs/old,")
    assert protocol_differences(fresh, warm) == []


def test_the_card_counts_cold_items_among_the_candidates(tmp_path: Path, write_prepared, make_config) -> None:
    folder = write_prepared(tmp_path / "set", [[1, 2, 3]], num_items=5)
    manifest = load_manifest(folder)
    facts = VectorFacts(dim=2, num_items=5, num_cold_items=2, num_bytes=1, sha256="")
    cards = [
        protocol_card(make_config(folder), manifest.model_copy(update={"item_vectors": vectors}), False, "test")[
            "candidates"
        ]
        for vectors in (None, facts, facts.model_copy(update={"num_cold_items": 0}))
    ]
    assert cards == [
        "the whole catalogue, 5 items, none sampled",
        "the whole catalogue, 5 items (2 of them without an event in the log: data.item_vectors.cold_items), none "
        "sampled",
        "the whole catalogue, 5 items, none sampled",
    ]
