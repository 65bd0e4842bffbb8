"""What the console says of a run while it trains, from the lines of metrics.jsonl."""

import json
from io import StringIO
from pathlib import Path

from rich.console import Console

from genrec.training.progress import progress_of

START = {"kind": "start", "step": 0, "end_step": 90, "resumed": False, "seconds_to_first_step": 31.2}
TRAIN = {"kind": "train", "step": 28, "loss": 2.5, "events_per_s": 26_072.4, "data_wait_fraction": 0.004}


def test_a_run_is_told_in_lines(tmp_path: Path) -> None:
    file, stream = tmp_path / "metrics.jsonl", StringIO()
    with progress_of(file, Console(file=stream, width=200)):
        lines = [START, {**TRAIN, "eta_s": 119.7}, {"kind": "validation", "epoch": 4.0, "metrics": {"hr@10": 0.0825}}]
        file.write_text("".join(json.dumps({"best": True} | line) + "\n" for line in lines))
    assert "started after 31 s" in stream.getvalue()
    assert "step 28  loss 2.5000  26,072 events/s  data wait 0.4%  ETA 2:00" in stream.getvalue()
    assert "epoch 4  hr@10 0.0825  (best)" in stream.getvalue()
