"""What a machine is, read from files of the system."""

from pathlib import Path

from genrec.machine_facts import cores, gpus, machine_line, processor


def test_gpus_are_counted_by_name(tmp_path: Path) -> None:
    for place, name in enumerate(["NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3", "NVIDIA L4"]):
        folder = tmp_path / f"0000:{place}0:00.0"
        folder.mkdir()
        (folder / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t\t 16\n")
    assert gpus(tmp_path) == "2 x NVIDIA H100 80GB HBM3, 1 x NVIDIA L4"


def test_a_machine_without_gpus_has_none(tmp_path: Path) -> None:
    assert gpus(tmp_path / "nothing") is None
    assert machine_line().startswith(f"{processor()}, {cores()} cores")
