"""A matrix becomes cases, in order, and every mistake in it is a sentence before anything is measured."""

from pathlib import Path
from typing import Any

import pytest
from bench_matrices import write_matrix

from genrec.bench.matrix import cases_of, load_matrix, measurements_of
from genrec.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
AXES = {"engine.precision": ["fp32", "bf16"], "model.dim": [16, 32]}


def names(folder: Path, **values: Any) -> list[str]:
    path = write_matrix(folder, **values)
    return [case.name for case in cases_of(load_matrix(path), str(path))]


def test_every_combination_is_a_case_and_then_those_with_a_name(tmp_path: Path) -> None:
    path = write_matrix(tmp_path, axes=AXES, cases={"deep": {"model.num_layers": 3}})
    cases = cases_of(load_matrix(path), str(path))
    assert [case.name for case in cases] == [
        "precision=fp32 dim=16",
        "precision=fp32 dim=32",
        "precision=bf16 dim=16",
        "precision=bf16 dim=32",
        "deep",
    ]
    assert [(case.config.model.dim, case.config.model.num_layers) for case in cases[-2:]] == [(32, 1), (16, 3)]
    assert cases[1].overrides == {"engine.precision": "fp32", "model.dim": 32}


def test_exclude_leaves_out_what_matches(tmp_path: Path) -> None:
    assert names(tmp_path, axes=AXES, exclude=[{"engine.precision": "bf16", "model.dim": 32}]) == [
        "precision=fp32 dim=16",
        "precision=fp32 dim=32",
        "precision=bf16 dim=16",
    ]


def test_without_axes_and_cases_the_base_is_the_case(tmp_path: Path) -> None:
    assert names(tmp_path) == ["base"]


def test_keys_with_the_same_end_are_told_apart(tmp_path: Path) -> None:
    axes = {"data.source.num_items": [200], "optimizer.lr": [0.1], "optimizer.table": [None], "engine.name": ["torch"]}
    assert names(tmp_path, axes={**axes, "model.name": ["sasrec"]}) == [
        "num_items=200 lr=0.1 table=null engine.name=torch model.name=sasrec"
    ]


def test_a_whole_round_comes_before_the_next_repetition(tmp_path: Path) -> None:
    path = write_matrix(tmp_path, axes={"model.dim": [16, 32]}, repetitions=2, modes=["full", "data-only"])
    matrix = load_matrix(path)
    found = measurements_of(matrix, cases_of(matrix, str(path)))
    order = [(one.repetition, one.case.config.model.dim, one.mode) for one in found]
    assert order == [(r, dim, mode) for r in (0, 1) for dim in (16, 32) for mode in ("full", "data-only")]
    assert len({one.key for one in found}) == 8


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"repetition": 2}, "repetition is not a known setting; did you mean repetitions"),
        ({"modes": ["full", "half"]}, "modes.1 = 'half' is refused"),
        ({"axes": {"model.dim": []}}, "model.dim is empty"),
        ({"axes": {"model.dim": [16, 16]}}, "model.dim has a value twice"),
        ({"axes": {"model.dims": [16]}}, "case dims=16, has 1 problem:.*model.dims is not a known setting; did you"),
        ({"axes": {"model.dim": [15], "model.num_heads": [2]}}, "case dim=15 num_heads=2.*must be divisible"),
        ({"axes": {"train.max_steps.x": [1]}}, "case x=1: train.max_steps.x is inside max_steps, which is the value 5"),
        ({"axes": AXES, "exclude": [{"model.name": "hstu"}]}, "exclude names model.name, which is no axis"),
        ({"axes": AXES, "exclude": [{"model.dim": 64}]}, "which no combination of the axes matches"),
        ({"axes": {"model.dim": [16]}, "exclude": [{"model.dim": 16}]}, "exclude leaves no case"),
        ({"axes": {"model.dim": [16]}, "cases": {"dim=16": {"seed": 2}}}, "give it another name"),
        ({"base": "configs/none.yaml"}, "Config file configs/none.yaml does not exist"),
    ],
)
def test_mistakes(tmp_path: Path, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){sentence}"):
        names(tmp_path, **values)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "matrices").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_matrices_of_the_repository_have_cases(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cases = cases_of(load_matrix(path), str(path))
    assert len(cases) >= (24 if path.stem == "memory" else 2)
    assert path.read_text(encoding="utf-8").startswith(f"# genrec bench benchmarks/matrices/{path.name}")
