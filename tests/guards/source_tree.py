"""The source files that the guards look at, and their syntax trees."""

import ast
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "genrec"


@functools.cache
def repository_files() -> tuple[Path, ...]:
    """Every file that git tracks or would track; at least one."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    files = tuple(ROOT / name for name in sorted(set(shown.split("\0"))) if name and (ROOT / name).is_file())
    assert files, "git lists no file"
    return files


def python_files() -> list[Path]:
    """Every Python file of the repository."""
    files = [path for path in repository_files() if path.suffix == ".py"]
    assert files, "there is no Python file"
    return files


def package_files() -> list[Path]:
    """Every Python file of the package."""
    files = [path for path in python_files() if path.is_relative_to(PACKAGE)]
    assert files, "genrec has no Python file"
    return files


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_of(path: Path) -> str:
    """`genrec.data.batch` for genrec/data/batch.py, and `genrec.data` for genrec/data/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[str, bool, int]]:
    """(module, inside a function, line) of every import; `from a import b` gives both a and a.b."""
    yield from _imports_below(tree_of(path), inside_function=False)


def _imports_below(node: ast.AST, inside_function: bool) -> Iterator[tuple[str, bool, int]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside_function, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0 and child.module, f"line {child.lineno}: a relative import; name the package"
            yield child.module, inside_function, child.lineno
            yield from ((f"{child.module}.{alias.name}", inside_function, child.lineno) for alias in child.names)
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports_below(child, inside_function or is_function)


def where(path: Path, line: int) -> str:
    """`genrec/data/batch.py:12`, for a message."""
    return f"{path.relative_to(ROOT)}:{line}"
