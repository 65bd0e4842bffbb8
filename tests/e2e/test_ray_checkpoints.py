"""Checkpoints of a run on Ray Train: which are kept, and what is done about damaged ones."""

import json
from pathlib import Path

import pytest
from commands import records, refused, succeed

RAY = ("train", "walk.yaml", "name=kept", "cluster.workers=2", "train.keep_checkpoints=2", "train.keep_best=1")


def steps(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*"))


def flip(path: Path) -> None:
    """Changes one bit: the size stays, so only the digest tells."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray_keeps_the_newest_and_the_best_and_refuses_when_all_are_damaged(project: Path) -> None:
    run = project / "runs" / "kept"
    succeed(project, *RAY, "train.max_epochs=4")
    end = records(run, "start")[0]["end_step"]
    metrics = {line["step"]: line["metrics"]["ndcg@10"] for line in records(run, "validation")}
    best = max(metrics, key=lambda step: metrics[step])
    saved = {*range(20, end + 1, 20), *metrics}
    assert steps(run) == sorted({*sorted(saved)[-2:], best})
    assert {p.name for p in (run / "checkpoints" / f"step_{end:08d}").iterdir()} >= {"rank_00001.json", "finished"}

    *_, before, newest = steps(run)
    flip(run / "checkpoints" / f"step_{newest:08d}" / "torch.pt")
    longer = (*RAY, "train.max_epochs=5", "--allow-change", "train.max_epochs")
    succeed(project, *longer)
    assert records(run, "start")[-1]["step"] == before

    for checkpoint in (run / "checkpoints").glob("step_*"):
        flip(checkpoint / "torch.pt")
    evaluation = json.loads((run / "evaluation.json").read_text())
    message = refused(project, *longer, exit_code=1)
    assert "can be used any more" in message
    assert "torch.pt does not have the SHA-256" in message
    assert json.loads((run / "evaluation.json").read_text()) == evaluation
