"""launch/Dockerfile without Docker: what it copies is there, its versions agree, its scripts are scripts."""

import fnmatch
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from genrec.doctor import SUPPORTED_PYTHONS

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "launch" / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()


def arguments_of(instruction: str) -> list[str]:
    """What follows an instruction, each time."""
    return [line.removeprefix(instruction).strip() for line in INSTRUCTIONS if line.startswith(f"{instruction} ")]


def let_through() -> list[str]:
    """The patterns of .dockerignore that are not ignored; everything else is."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert lines[0] == "*", "without it the whole checkout, with runs and secrets, goes to the Docker daemon"
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


def test_what_is_copied_is_there_and_goes_to_the_builder() -> None:
    copied = [source for line in arguments_of("COPY") for source in line.split()[:-1]]
    assert {"constraints.txt", "setup.py", "genrec"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists()
        assert any(fnmatch.fnmatch(source, pattern) for pattern in let_through()), f".dockerignore keeps {source} out"


def test_what_setup_reads_is_copied() -> None:
    read = re.findall(r'with_name\("([^"]+)"\)', (ROOT / "setup.py").read_text(encoding="utf-8"))
    copied = " ".join(arguments_of("COPY")).split()
    assert read and set(read) <= set(copied)


def test_every_stage_that_is_named_is_made() -> None:
    stages = [re.fullmatch(r"(\S+) AS (\S+)", line) for line in arguments_of("FROM")]
    made = {stage[2] for stage in stages if stage}
    assert made == {"base-cpu", "base-cuda", "image"}
    assert stages[-1] is not None and stages[-1][1] == "base-${DEVICE}"
    assert arguments_of("ARG").count("DEVICE") == 1, "an ARG before FROM is not known after it"


def test_versions_agree() -> None:
    pythons = set(re.findall(r"python:?(3\.\d+)", "\n".join(INSTRUCTIONS)))
    (python,) = pythons
    assert tuple(map(int, python.split("."))) in SUPPORTED_PYTHONS
    (cuda,) = re.findall(r"nvidia/cuda:(\d+\.\d+)", TEXT)
    assert f"/whl/cu{cuda.replace('.', '')}" in TEXT
    assert f"/whl/cu{cuda.replace('.', '')}" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_login_shells_find_what_is_installed() -> None:
    folder = re.search(r"python3\.\d+ -m venv (\S+)", TEXT)
    assert folder is not None
    assert f"export PATH={folder[1]}/bin:$PATH' > /etc/profile.d/" in TEXT
    assert any(line.startswith(f"PATH={folder[1]}/bin:${{PATH}}") for line in arguments_of("ENV"))


def test_the_ops_are_built_for_the_device() -> None:
    (install,) = [line for line in arguments_of("RUN") if line.endswith(" deepspeed")]
    assert 'DS_ACCELERATOR="${DEVICE}"' in install


def test_the_image_runs_as_the_user_of_the_manifests() -> None:
    assert arguments_of("USER") == ["genrec"]
    assert "useradd --uid 1000 " in TEXT
    assert "runAsUser: 1000" in (ROOT / "launch" / "examples" / "rayjob.yaml").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="`make install` installs shellcheck")
def test_shellcheck_finds_nothing_in_what_is_run(tmp_path: Path) -> None:
    for number, command in enumerate(arguments_of("RUN")):
        script = tmp_path / f"{number}.sh"
        script.write_text(f"#!/bin/sh\nset -e\nexport DEVICE=cpu TORCH_INDEX=x TORCH_EXTENSIONS_DIR=y\n{command}\n")
        found = subprocess.run(
            # 2015: `a && b || true` is meant so; 2016: $PATH is for the file that is written.
            ["shellcheck", "--exclude", "SC2015,SC2016", str(script)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert found.returncode == 0, found.stdout
