"""A checkpoint that hides code is refused with a sentence, and its code does not run."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from genrec.data.saved_tasks import map_saved
from genrec.errors import DataError, RunError
from genrec.training.universal import TRUST_VARIABLE, only_weights


class Hidden:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_file_of_deepspeed_with_code_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"module": {"w": torch.zeros(1)}, "more": Hidden(tmp_path / "ran")}, tmp_path / "shard.pt")
    sentence = r"more than weights and settings \(\S*mkdir\).*GENREC_TRUST_CHECKPOINTS=1"
    with pytest.raises(RunError, match=sentence), only_weights():
        torch.load(tmp_path / "shard.pt", weights_only=False)  # as DeepSpeed calls it
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    with only_weights():
        torch.load(tmp_path / "shard.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_what_deepspeed_writes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    saved = [LossScaler(scale=1.0), ZeroStageEnum.gradients, fragment_address(numel=3, start=1), torch.ones(2)]
    torch.save(saved, tmp_path / "shard.pt")
    with only_weights():
        loaded = torch.load(tmp_path / "shard.pt", weights_only=False)
    assert loaded[1] is ZeroStageEnum.gradients and loaded[2].numel == 3
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "0"


@pytest.mark.parametrize("hidden", [pickle.dumps(Hidden(Path("ran"))), b"no pickle", b""])
def test_a_result_of_a_task_with_code_in_it_is_refused(tmp_path: Path, hidden: bytes) -> None:
    (tmp_path / "000000.pickle").write_bytes(hidden)
    with pytest.raises(DataError, match="not a result of genrec's"):
        list(map_saved(map, str, [1], tmp_path))
    assert not Path("ran").exists()
