from pathlib import Path

import numpy as np
import pytest

from peer_quality import curve_points, score_vectors


def validation(step: int, elapsed_s: float, seconds: float) -> dict[str, object]:
    return {
        "kind": "validation",
        "step": step,
        "epoch": 1.0,
        "elapsed_s": elapsed_s,
        "seconds": seconds,
        "metrics": {"ndcg@10": 0.1, "hr@10": 0.2},
    }


def test_training_seconds_leave_out_earlier_validations() -> None:
    records = [{"kind": "train"}, validation(5, 10.0, 4.0), validation(10, 24.0, 4.0), validation(15, 38.0, 4.0)]
    assert [point["training_s"] for point in curve_points(records, None)] == [10.0, 20.0, 30.0]


def test_test_metrics_belong_to_the_best_step_alone() -> None:
    evaluation = {"test": {"best_step": 10, "metrics": {"ndcg@10": 0.3, "hr@10": 0.5}}}
    points = curve_points([validation(5, 10.0, 4.0), validation(10, 24.0, 4.0)], evaluation)
    assert [point["test_ndcg@10"] for point in points] == [None, 0.3]


def test_vectors_are_ranked_without_seen_items_and_unknown_targets_come_last(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    # user 1: validation target 12, test target 13; user 2: validation 11, test 99, which has no vector; user 3: short
    log.write_text("1 10 12 13\n2 10 11 99\n3 10 11\n", encoding="utf-8")
    scores = {10: 9.0, 11: 8.0, 12: 7.0, 13: 1.0}
    np.savez(
        tmp_path / "vectors.npz",
        item_ids=np.array(list(scores)),
        items=np.array([[score] for score in scores.values()], dtype=np.float32),
        validation=np.ones((2, 1), dtype=np.float32),
        test=np.ones((2, 1), dtype=np.float32),
    )
    metrics = score_vectors(tmp_path / "vectors.npz", log)
    # validation: 10 is seen, so user 1 ranks 11 before 12 (rank 2) and user 2 ranks 11 first
    assert metrics["validation_ndcg@10"] == pytest.approx((1 / np.log2(3) + 1) / 2)
    assert metrics["validation_hr@10"] == 1.0
    # test: user 1 has seen 10 and 12, so 11 comes before 13 (rank 2); user 2's target ties with the seen items,
    # all of them at minus infinity, and is ranked last of five
    assert metrics["test_ndcg@10"] == pytest.approx((1 / np.log2(3) + 1 / np.log2(6)) / 2)
