"""Public names are documented, and no file holds a note to oneself or a path of somebody's machine."""

import ast
import re
from collections.abc import Iterator

import pytest
from source_tree import ROOT, package_files, repository_files, tree_of, where

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# Written in two parts, so that this file does not hold them.
NOTES = re.compile("|".join(rf"\b{a}{b}\b" for a, b in (("TO", "DO"), ("FIX", "ME"), ("XX", "X"))))
# /tmp/ray is where Ray writes on every machine.
HOMES = re.compile(r"(?<![\w.$})/*-])/(home|root|Users|work|tmp(?!/ray\b))" + r"/\w")


def _public(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[Documented, str]]:
    """Public classes, functions and methods; overloads and what `@override` marks are documented elsewhere."""
    for child in node.body:
        if not isinstance(child, Documented) or child.name.startswith("_"):
            continue
        if {"override", "overload"} & {ast.unparse(decorator).split(".")[-1] for decorator in child.decorator_list}:
            continue
        yield child, prefix + child.name
        if isinstance(child, ast.ClassDef):
            yield from _public(child, f"{child.name}.")


def test_public_names_have_docstrings() -> None:
    found = [(path, node, name) for path in package_files() for node, name in _public(tree_of(path))]
    assert len(found) > 50
    bare = [f"{where(path, node.lineno)} {name}" for path, node, name in found if not ast.get_docstring(node)]
    assert not bare, "say what comes back:\n" + "\n".join(bare)


def test_modules_have_docstrings() -> None:
    bare = [where(path, 1) for path in package_files() if not ast.get_docstring(tree_of(path))]
    assert not bare, f"say what each file is for: {bare}"


@pytest.mark.parametrize("pattern", [NOTES, HOMES], ids=["notes", "homes"])
def test_no_file_holds(pattern: re.Pattern[str]) -> None:
    wrong, num_lines = [], 0
    for path in repository_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # a picture
        for number, line in enumerate(lines, start=1):
            num_lines += 1
            match = pattern.search(line)
            if match:
                wrong.append(f"{where(path, number)} holds {match.group()!r}")
    assert num_lines > 1_000
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("see /" + "home/someone/data", True),
        ("cd /" + "work/main", True),
        ("'/" + "tmp/x'", True),
        ("path: /" + "tmp/ray", False),
        ("docs/work/x, $HOME/root/y, https://example.org/home/z", False),
    ],
)
def test_the_pattern_of_paths(text: str, is_found: bool) -> None:
    assert bool(HOMES.search(text)) == is_found


def test_links_lead_somewhere() -> None:
    pages = [path for path in repository_files() if path.suffix == ".md"]
    links = [
        (where(page, number), page.parent / target.split("#")[0])
        for page in pages
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
        for target in re.findall(r"\]\(([^)\s]+)\)", line)
        if not re.match(r"[a-z]+:|#", target)
    ]
    assert links, f"no page under {ROOT.name} links to another"
    assert not [place for place, target in links if not target.exists()]
