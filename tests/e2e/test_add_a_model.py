"""docs/add_a_model.md works: its blocks, applied to a copy of genrec, give a model that trains and passes the tests."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/add_a_model.md").read_text(encoding="utf-8")
COPIED = ("genrec", "pyproject.toml", "tests/conftest.py", "tests/prepared_sets.py", "tests/unit/models")
PLACES = {"genrec/config_models.py", "genrec/models/build.py", "genrec/models/gru.py"}


def apply_block(tree: Path, kind: str, block: str) -> str:
    """Does to `tree` what a block says, and returns the path of the file; a diff must fit in exactly one place."""
    head, body = block.split("\n", 1)
    name = head.removeprefix("--- ").removeprefix("# ")
    path = tree / name
    if kind == "diff":
        lines = body.splitlines(keepends=True)
        old, new = ("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
        source = path.read_text(encoding="utf-8")
        assert source.count(old) == 1, f"{name} holds {source.count(old)} times:\n{old}"
        body = source.replace(old, new)
    else:
        assert not path.exists(), f"{name} is there already"
    path.write_text(body, encoding="utf-8")
    return name


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A copy of genrec with the page's blocks applied, and the files that they touched."""
    tree = tmp_path_factory.mktemp("tree")
    for name in COPIED:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, tree / name)
    blocks = re.findall(r"```(python|diff|yaml)\n(.*?)```", PAGE, re.DOTALL)
    return tree, {apply_block(tree, kind, block) for kind, block in blocks}


def run(tree: Path, *arguments: str) -> str:
    """What a Python command printed that imports genrec from `tree`."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def test_three_places_of_the_package_are_touched(changed: tuple[Path, set[str]]) -> None:
    assert {name for name in changed[1] if name.startswith("genrec/")} == PLACES


def test_what_was_written_passes_the_linter(changed: tuple[Path, set[str]]) -> None:
    """The page ends with `make check`, which looks at the order of imports and the format, too."""
    tree, touched = changed
    for command in (["check"], ["format", "--check"]):
        run(tree, "-m", "ruff", *command, "--no-cache", *(name for name in sorted(touched) if name.endswith(".py")))


def test_the_model_learns(changed: tuple[Path, set[str]]) -> None:
    tree, _ = changed
    command = next(line for line in PAGE.splitlines() if line.startswith("genrec train ")).split()[1:]
    run(tree, "-c", "from genrec.cli import main; main()", *command)
    folder = tree / "runs" / "gru"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < 0.9 * losses[0]
    test = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["test"]
    assert test["metrics"]["hr@10"] > 2 * test["popularity"]["hr@10"]


def test_the_model_passes_the_model_tests(changed: tuple[Path, set[str]]) -> None:
    shown = run(
        changed[0], "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "gru", "tests/unit/models/test_models.py"
    )
    passed = re.search(r"(\d+) passed", shown)
    assert passed and int(passed.group(1)) >= 10, shown
