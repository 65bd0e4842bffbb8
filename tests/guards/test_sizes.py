"""Files, functions and parameter lists stay small enough to read in one go."""

import ast
from pathlib import Path

import pytest
from source_tree import python_files, tree_of, where

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MAX_PARAMETERS = 8

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _parameters(function: Function) -> list[str]:
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, [given.vararg, given.kwarg])]
    return [parameter.arg for parameter in named if parameter.arg not in ("self", "cls")]


def _too_large(path: Path, tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, Function):
            continue
        num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if num_lines > MAX_FUNCTION_LINES:
            found.append(f"{where(path, node.lineno)} {node.name}: {num_lines} lines, at most {MAX_FUNCTION_LINES}")
        num_parameters = len(_parameters(node))
        if num_parameters > MAX_PARAMETERS:
            found.append(
                f"{where(path, node.lineno)} {node.name}: {num_parameters} parameters, at most {MAX_PARAMETERS}"
            )
    return found


def test_files() -> None:
    num_lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    wrong = [
        f"{where(path, count)}: at most {MAX_FILE_LINES} lines"
        for path, count in num_lines.items()
        if count > MAX_FILE_LINES
    ]
    assert not wrong, "split these files:\n" + "\n".join(wrong)


def test_functions() -> None:
    wrong = [line for path in python_files() for line in _too_large(path, tree_of(path))]
    assert not wrong, "split these functions:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("code", "num_found"),
    [
        ("def f(a, b, c, d, e, f, g, h): pass", 0),
        ("def f(self, a, b, c, d, e, f, g, h): pass", 0),
        ("def f(a, b, c, d, e, f, g, *, h, **i): pass", 1),
        ("def f():\n" + "    x = 1\n" * 79, 0),
        ("def f():\n" + "    x = 1\n" * 80, 1),
    ],
)
def test_the_guard_itself(code: str, num_found: int) -> None:
    assert len(_too_large(python_files()[0], ast.parse(code))) == num_found
