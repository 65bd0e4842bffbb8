"""docs/operations.md, followed literally: the blocks that it marks are run in a fresh folder, one after another."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "operations.md"
BLOCK = re.compile(r"^<!-- run: local -->\n```\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[str]:
    """The marked blocks of the page, in its order."""
    return BLOCK.findall(PAGE.read_text(encoding="utf-8"))


def test_every_mark_has_a_block() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert len(blocks()) == len(re.findall(r"^<!-- run:", page, re.MULTILINE)) >= 2


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_the_marked_blocks_run_as_they_stand(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    script = "set -euxo pipefail\n" + "\n".join(blocks())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=1_100,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stdout + done.stderr
    for made in ("report.html", "evaluation.json", "exports"):
        assert (tmp_path / "runs" / "quickstart" / made).exists()
