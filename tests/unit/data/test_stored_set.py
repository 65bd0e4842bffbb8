"""A prepared set on storage: what a killed append left in this machine's copy misleads nobody."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from genrec.config import DataConfig
from genrec.data import stored_set
from genrec.data.manifest import load_manifest
from genrec.data.stored_set import at_hand, worked_on
from genrec.stored_folder import StoredFolder

LEFT = "sequences/part-00000.superseded.npy"


@pytest.fixture
def stored(tmp_path: Path, write_prepared: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A set at a URI, which this machine has a copy of."""
    monkeypatch.setenv("GENREC_COPIES", str(tmp_path / "copies"))
    stored_set._fetched.cache_clear()
    uri = (tmp_path / "storage").as_uri()
    write_prepared(StoredFolder(uri).copy, [[1, 2, 3, 4]] * 3)
    StoredFolder(uri).push()
    return DataConfig.model_validate({"source": {"name": "synthetic"}, "prepared": uri})


def fail_in_the_middle(config: DataConfig) -> None:
    with pytest.raises(KeyboardInterrupt), worked_on(config) as here:
        (Path(here.prepared) / LEFT).write_bytes(b"rows of an append that was never stored")
        raise KeyboardInterrupt


def test_the_next_command_starts_from_what_is_stored(stored: DataConfig) -> None:
    fail_in_the_middle(stored)
    with worked_on(stored) as here:
        assert not (Path(here.prepared) / LEFT).exists()
        load_manifest(here.prepared)


def test_a_reader_sees_what_is_stored(stored: DataConfig) -> None:
    fail_in_the_middle(stored)
    assert not (at_hand(stored.prepared) / LEFT).exists()
    assert load_manifest(stored.prepared).num_users == 3


def test_a_reader_waits_for_who_works_in_the_copy(stored: DataConfig) -> None:
    code = f"from genrec.data.stored_set import at_hand; at_hand({stored.prepared!r}); print('read', flush=True)"
    with worked_on(stored):
        reader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(5)
    assert reader.communicate(timeout=120)[0] == "read\n"
