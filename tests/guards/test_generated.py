"""What is written down twice agrees: generated pages, pinned versions, make targets."""

import re
import runpy
import subprocess

from source_tree import ROOT, where

from genrec.doctor import SUPPORTED_PYTHONS, TESTED_VERSIONS


def _pins() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", text, flags=re.MULTILINE))


def test_config_reference_is_current() -> None:
    render = runpy.run_path(str(ROOT / "docs" / "config_reference.py"))["render"]
    written = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert written == render(), "run `make docs`"


def test_doctor_knows_the_tested_versions() -> None:
    pins = _pins()
    assert {name: pins[name] for name in TESTED_VERSIONS} == TESTED_VERSIONS


def test_every_dependency_is_pinned_within_its_range() -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    wanted = re.findall(r'"([A-Za-z][\w-]*)(?:\[[\w,]+\])?(?:([><=][^"]*))?"', setup)
    named = {name.lower() for name, rule in wanted if rule}
    assert len(named) > 10
    assert not named - _pins().keys(), "pin these in constraints.txt"


def test_supported_pythons_are_those_of_setup() -> None:
    (low, high) = SUPPORTED_PYTHONS[0], SUPPORTED_PYTHONS[-1]
    rule = f'python_requires=">={low[0]}.{low[1]},<{high[0]}.{high[1] + 1}"'
    assert rule in (ROOT / "setup.py").read_text(encoding="utf-8")


def test_make_has_the_targets_that_the_docs_name() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    assert {"install", "quickstart", "test", "check", "bench", "docs", "clean"} <= targets
    named = [
        (where(page, number), name)
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
        for name in re.findall(r"(?:^|`|&& )make ([a-z][a-z-]*)", line)
    ]
    assert named
    assert not [(place, name) for place, name in named if name not in targets]


def test_continuous_integration_fails_when_a_command_fails(tmp_path) -> None:
    """.ci/run with a `make` that fails on `test` must fail, and must not run after a failed `check`."""
    for failing, expected in (("check", ["check"]), ("test", ["check", "test"])):
        fake = tmp_path / "make"
        log = tmp_path / f"{failing}.log"
        fake.write_text(f'#!/bin/sh\necho "$1" >> {log}\n[ "$1" != {failing} ]\n')
        fake.chmod(0o755)
        ended = subprocess.run(
            ["bash", str(ROOT / ".ci" / "run")],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert ended.returncode != 0
        assert log.read_text().split() == expected
