"""An export survives a round trip and a kill at any time, and says what is wrong with it."""

import shutil
from pathlib import Path

import pytest
import torch

from genrec.data.schema import ITEMS_FILE
from genrec.errors import DataError, RunError
from genrec.inference import export as export_module
from genrec.inference.export import MODEL_FILE, find_export, read_export, write_export

FILES = [MODEL_FILE, "config.yaml", ITEMS_FILE, "export.json"]


@pytest.fixture
def prepared(tmp_path: Path, write_prepared) -> Path:
    return write_prepared(tmp_path / "set", [[1, 2, 3]], string_ids=True)


def weights(value: float) -> dict[str, torch.Tensor]:
    table = torch.full((4, 2), value)
    return {"table": table, "tied": table, "transposed": torch.arange(6.0).reshape(2, 3).T, "step": torch.tensor(3)}


def test_what_is_read_is_what_was_written(tmp_path: Path, prepared: Path, make_config) -> None:
    config = make_config(prepared)
    folder = tmp_path / "run" / "export"
    write_export(folder, weights(0.5), config, prepared / ITEMS_FILE, {"step": 12, "value": 0.25})
    found_config, state_dict, items, info, vectors, ids = read_export(folder)
    assert (vectors, ids) == (None, None)
    assert found_config == config
    assert info == {"step": 12, "value": 0.25}
    assert items["item"].to_pylist() == ["item-10", "item-20", "item-30"]
    assert state_dict.keys() == weights(0.5).keys()
    assert all(torch.equal(state_dict[name], tensor) for name, tensor in weights(0.5).items())
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert [path.name for path in folder.parent.iterdir()] == ["export"]


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_named(tmp_path: Path, prepared: Path, make_config, name: str) -> None:
    write_export(tmp_path / "export", weights(1), make_config(prepared), prepared / ITEMS_FILE, {})
    path = tmp_path / "export" / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match=name):
        read_export(tmp_path / "export")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path: Path, prepared: Path, make_config, name: str) -> None:
    write_export(tmp_path / "export", weights(1), make_config(prepared), prepared / ITEMS_FILE, {})
    (tmp_path / "export" / name).unlink()
    with pytest.raises(DataError, match=name):
        read_export(tmp_path / "export")


@pytest.mark.parametrize("name", [MODEL_FILE, ITEMS_FILE, "config.yaml"])
def test_bytes_of_the_right_number_and_the_wrong_kind_are_refused(
    tmp_path: Path, prepared: Path, make_config, name: str
) -> None:
    write_export(tmp_path / "export", weights(1), make_config(prepared), prepared / ITEMS_FILE, {})
    path = tmp_path / "export" / name
    path.write_bytes(b"\x00" * path.stat().st_size)
    with pytest.raises(DataError, match="damaged"):
        read_export(tmp_path / "export")


def test_an_export_that_is_being_replaced_is_found_by_its_own_path(tmp_path: Path, prepared: Path, make_config) -> None:
    write_export(tmp_path / "export", weights(1), make_config(prepared), prepared / ITEMS_FILE, {})
    (tmp_path / "export").rename(tmp_path / "export.new")  # as a swap that was cut leaves it
    assert find_export(tmp_path / "export") == tmp_path / "export"
    assert read_export(find_export(tmp_path / "export")).config.name == "unit"


def test_no_export_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not an export"):
        read_export(tmp_path / "export")


class Killed(BaseException):
    """Stands for a SIGKILL: nothing of the writer runs after it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """Counts the writer's calls to the disk and raises at the `moment`-th, before it does anything."""
    count = 0

    def counted(original):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count >= moment:
                raise Killed
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(export_module, "save_file", counted(export_module.save_file))
    monkeypatch.setattr(export_module.shutil, "copyfile", counted(shutil.copyfile))
    monkeypatch.setattr(export_module.shutil, "rmtree", counted(shutil.rmtree))
    monkeypatch.setattr(export_module.os, "fsync", counted(export_module.os.fsync))
    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(Path, "mkdir", counted(Path.mkdir))
    monkeypatch.setattr(Path, "write_text", counted(Path.write_text))


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_one(tmp_path: Path, prepared: Path, make_config) -> None:
    config, folder = make_config(prepared), tmp_path / "export"
    found = []
    for moment in range(1, 60):
        write_export(folder, weights(1), config, prepared / ITEMS_FILE, {"step": 1})
        with pytest.MonkeyPatch.context() as monkeypatch:
            kill_at(monkeypatch, moment)
            try:
                write_export(folder, weights(2), config, prepared / ITEMS_FILE, {"step": 2})
                killed = False
            except Killed:
                killed = True
        export = read_export(folder)
        assert float(export.state_dict["table"][0, 0]) == export.info["step"]
        found.append(export.info["step"])
        if not killed:
            break
    assert not killed, "the writer makes more calls than this test has moments"
    assert found == sorted(found), "a later kill never brings the old one back"
    assert (found[0], found[-1]) == (1, 2)
    assert 2 in found[:-1], "some kill falls between the renames"


def test_a_full_disk_keeps_the_export_before(
    tmp_path: Path, prepared: Path, make_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "export"
    write_export(folder, weights(1), make_config(prepared), prepared / ITEMS_FILE, {"step": 1})

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "save_file", full)
    with pytest.raises(RunError, match=r"No space left on device.*export before it is kept"):
        write_export(folder, weights(2), make_config(prepared), prepared / ITEMS_FILE, {"step": 2})
    assert read_export(folder).info == {"step": 1}
    assert not (tmp_path / "export.tmp").exists()


def test_an_export_that_is_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, prepared: Path, make_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = tmp_path / "export", make_config(prepared)
    write_export(folder, weights(1), config, prepared / ITEMS_FILE, {"step": 1})
    original = export_module.load_file
    replacements = iter([2])

    def load_file(path: Path) -> dict[str, torch.Tensor]:
        loaded = original(path)
        for step in replacements:
            write_export(folder, weights(step), config, prepared / ITEMS_FILE, {"step": step})
        return loaded

    monkeypatch.setattr(export_module, "load_file", load_file)
    export = read_export(folder)
    assert (export.info["step"], float(export.state_dict["table"][0, 0])) == (2, 2.0)
