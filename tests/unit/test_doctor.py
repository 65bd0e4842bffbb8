"""`genrec doctor`: every check can pass and can fail, and what fails says how it is mended."""

import importlib.metadata
import os
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from rich.console import Console

from genrec import doctor
from genrec.doctor import GIB, Finding, has_errors, print_findings
from genrec.errors import RunError


def printed(findings: list[Finding]) -> str:
    """What a terminal of 100 columns shows."""
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    print_findings(findings, console)
    console.file.close()
    return console.export_text()


@pytest.mark.usefixtures("cpu_op")
def test_diagnosis_looks_at_everything_and_finds_this_machine_fit() -> None:
    findings = doctor.diagnose()
    assert [finding.name for finding in findings] == [
        "Python",
        "torch",
        "ray",
        "deepspeed",
        "pyarrow",
        "wandb",
        "accelerators",
        "CPUs",
        "memory",
        "shared memory",
        "free disk",
        "g++",
        "ninja",
        "Python headers",
        "DeepSpeed CPU op",
        "GENREC_DATA",
        "wandb key",
    ]
    assert not has_errors(findings), [finding for finding in findings if finding.status == "error"]
    assert all(bool(finding.mend) == (finding.status != "ok") for finding in findings)


def test_printing_shows_status_value_and_mend() -> None:
    findings = [Finding("disk", "ok", "9 GiB"), Finding("g++", "error", "not [on] PATH", "apt-get install g++")]
    lines = printed(findings).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["ok", "disk"], ["error", "g++"], ["mend:", "apt-get"]]
    assert "not [on] PATH" in lines[2]


@pytest.mark.parametrize(("status", "expected"), [("ok", False), ("warning", False), ("error", True)])
def test_only_errors_are_errors(status: doctor.Status, expected: bool) -> None:
    assert has_errors([Finding("a", "ok", ""), Finding("b", status, "", "mend")]) == expected


def test_an_unsupported_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_python().status == "ok"
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    finding = doctor.check_python()
    assert finding.status == "error"
    assert "3.11 or 3.12" in finding.mend


@pytest.mark.parametrize(
    ("installed", "status"), [("2.13.0", "ok"), ("2.13.0+cu130", "ok"), ("2.12.1", "warning"), (None, "error")]
)
def test_versions(installed: str | None, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(importlib.metadata, "version", version)
    finding = doctor.check_version("torch", "2.13.0")
    assert finding.status == status
    assert finding.mend == ("" if status == "ok" else "pip install -c constraints.txt torch==2.13.0")


def test_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_tool", lambda _: None)
    monkeypatch.setattr(doctor, "_cuda_devices", list)
    assert doctor.check_accelerators() == Finding("accelerators", "ok", "none; training runs on the CPUs")
    monkeypatch.setattr(doctor, "find_tool", lambda _: "nvidia-smi")
    assert doctor.check_accelerators().status == "warning"
    monkeypatch.setattr(doctor, "_cuda_devices", lambda: ["A (80.0 GiB)", "B (80.0 GiB)"])
    assert doctor.check_accelerators() == Finding("accelerators", "ok", "A (80.0 GiB), B (80.0 GiB)")


def test_a_torch_that_cannot_be_imported_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[str]:
        raise ImportError("libtorch.so is missing")

    monkeypatch.setattr(doctor, "_cuda_devices", fail)
    finding = doctor.check_accelerators()
    assert (finding.status, finding.value) == ("error", "torch cannot be imported (libtorch.so is missing)")


def test_what_only_cpu_training_needs_is_no_error_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_tool", lambda _: None)
    monkeypatch.setattr(doctor, "check_cpu_op", lambda _: Finding("op", "error", "", "mend"))
    monkeypatch.setattr(doctor, "_cuda_devices", list)
    assert [finding.status for finding in doctor.check_cpu_training(1.0)] == ["error", "error", "ok", "error"]
    monkeypatch.setattr(doctor, "_cuda_devices", lambda: ["A"])
    assert [finding.status for finding in doctor.check_cpu_training(1.0)] == ["warning", "warning", "ok", "warning"]


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("size_bytes", "status"), [(64 * 2**20, "warning"), (2 * GIB, "ok")])
def test_shared_memory(size_bytes: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(size_bytes, 0, size_bytes))
    finding = doctor.check_shared_memory(tmp_path)
    assert finding.status == status
    assert ("--shm-size=4g" in finding.mend) == (status == "warning")


def test_no_shared_memory_folder_is_fine(tmp_path: Path) -> None:
    assert doctor.check_shared_memory(tmp_path / "none").status == "ok"


@pytest.mark.parametrize(("free_bytes", "status"), [(9 * GIB, "warning"), (10 * GIB, "ok")])
def test_disk(free_bytes: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(99 * GIB, 0, free_bytes))
    assert doctor.check_disk(tmp_path).status == status


@pytest.mark.parametrize(("num_cpus", "status"), [(1, "warning"), (2, "ok")])
def test_cpus(num_cpus: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_cpus)), raising=False)
    assert doctor.check_cpus().status == status


@pytest.mark.parametrize(("num_pages", "status"), [(1, "warning"), (2**40, "ok")])
def test_memory(num_pages: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": num_pages}
    monkeypatch.setattr(os, "sysconf", values.__getitem__)
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    assert doctor.check_memory().status == status


def test_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_tool", lambda _: None)
    assert doctor.check_compiler().mend.startswith("apt-get install g++")
    monkeypatch.setattr(doctor, "find_tool", lambda _: "/bin/false")
    assert "/bin/false does not run" in doctor.check_compiler().value


def test_ninja_is_found_beside_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert doctor.check_ninja() == Finding("ninja", "ok", str(Path(sys.executable).parent / "ninja"))
    monkeypatch.setattr(doctor, "find_tool", lambda _: None)
    assert doctor.check_ninja().mend == "pip install ninja"


def test_python_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    finding = doctor.check_python_headers()
    assert finding.status == "error"
    assert finding.mend == f"apt-get install python3.{sys.version_info.minor}-dev"
    (tmp_path / "Python.h").touch()
    assert doctor.check_python_headers().status == "ok"


def test_an_op_that_does_not_compile_is_an_error_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: float) -> None:
        raise RunError("the lock is stale; rm lock")

    monkeypatch.setattr(doctor, "is_compiled", lambda: False)
    monkeypatch.setattr(doctor, "compile_cpu_op", fail)
    assert doctor.check_cpu_op(1.0) == Finding("DeepSpeed CPU op", "error", "not usable", "the lock is stale; rm lock")
    monkeypatch.setattr(doctor, "compile_cpu_op", lambda _: None)
    assert doctor.check_cpu_op(1.0).value.startswith("compiled now, in 0 s")
    monkeypatch.setattr(doctor, "is_compiled", lambda: True)
    assert doctor.check_cpu_op(1.0).value.startswith("compiled (")


def test_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENREC_DATA", raising=False)
    assert doctor.check_data_folder().status == "ok"
    monkeypatch.setenv("GENREC_DATA", str(tmp_path))
    assert doctor.check_data_folder() == Finding("GENREC_DATA", "ok", str(tmp_path))
    monkeypatch.setenv("GENREC_DATA", str(tmp_path / "none"))
    assert doctor.check_data_folder().status == "warning"


def test_a_wandb_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "logs offline" in doctor.check_wandb_key().value
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    assert doctor.check_wandb_key() == Finding("wandb key", "ok", "WANDB_API_KEY is set")
