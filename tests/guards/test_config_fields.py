"""Every setting has a description and is read somewhere: no dead flags."""

import ast
import re
from collections.abc import Iterator

import pytest
from pydantic.fields import FieldInfo
from source_tree import PACKAGE, package_files, tree_of

from genrec import config, config_models
from genrec.config import Section


def _fields() -> Iterator[tuple[type[Section], str, FieldInfo]]:
    for value in [*vars(config).values(), *vars(config_models).values()]:
        if isinstance(value, type) and issubclass(value, Section) and value is not Section:
            yield from ((value, name, field) for name, field in value.model_fields.items())


FIELDS = list(_fields())


def _is_tag(section: type[Section], name: str) -> bool:
    # The `name` that selects a kind of section is read by pydantic.
    return name == "name" and section is not config.ExperimentConfig


def _reads(tree: ast.AST) -> Iterator[str]:
    """The names behind a dot, and the words of a function that calls `getattr` with a name it computes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        elif isinstance(node, ast.FunctionDef) and "getattr(" in ast.unparse(node):
            words = (child.value for child in ast.walk(node) if isinstance(child, ast.Constant))
            yield from (word for word in words if isinstance(word, str))


def _reads_of_properties(tree: ast.AST, wanted: set[str]) -> Iterator[str]:
    """What properties read that are themselves read elsewhere, or by such properties."""
    properties = {
        node.name: set(_reads(node))
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and "property" in map(ast.unparse, node.decorator_list)
    }
    pending = [name for name in properties if name in wanted]
    while pending:
        found = properties.pop(pending.pop(), set())
        yield from found
        pending += [name for name in found if name in properties]


@pytest.fixture(scope="module")
def names_read() -> set[str]:
    """What the package reads anywhere but where settings are defined; there, what a property makes of them counts."""
    named = re.compile(r"config(_(?!errors)\w+)?\.py$")
    definitions = [path for path in package_files() if path.parent == PACKAGE and named.match(path.name)]
    elsewhere = {name for path in package_files() if path not in definitions for name in _reads(tree_of(path))}
    return elsewhere | {name for path in definitions for name in _reads_of_properties(tree_of(path), elsewhere)}


def test_there_are_fields() -> None:
    assert len(FIELDS) > 50


def test_every_field_is_read(names_read: set[str]) -> None:
    dead = [
        f"{section.__name__}.{name}"
        for section, name, _ in FIELDS
        if name not in names_read and not _is_tag(section, name)
    ]
    assert not dead, f"no code reads these settings; use them or remove them: {dead}"


def test_every_field_is_described() -> None:
    bare = [
        f"{section.__name__}.{name}"
        for section, name, field in FIELDS
        if not field.description and not _is_tag(section, name)
    ]
    assert not bare, f"give these settings a description: {bare}"


@pytest.mark.parametrize(
    ("code", "reads"),
    [
        ("x = config.dim", {"dim"}),
        ("config.dim = 1", set()),
        ("def f(c):\n    return [getattr(c, n) for n in ('user', 'item')]", {"user", "item"}),
        ("def f(c):\n    return c['user']", set()),
    ],
)
def test_what_counts_as_reading(code: str, reads: set[str]) -> None:
    assert set(_reads(ast.parse(code))) == reads


def test_what_a_property_reads_counts_where_the_property_is_read() -> None:
    code = "class C:\n @property\n def a(self): return self.b\n @property\n def b(self): return self.c\n"
    code += " @property\n def d(self): return self.e\n def f(self): return self.g"
    assert set(_reads_of_properties(ast.parse(code), {"a", "f"})) == {"b", "c"}


def test_sections_are_small_and_documented() -> None:
    sections = {section for section, _, _ in FIELDS}
    num_settings = {s: sum(not _is_tag(s, name) for name in s.model_fields) for s in sections}
    large = [s.__name__ for s in sections if num_settings[s] > 12 and s is not config.ExperimentConfig]
    assert not large, f"more than 12 settings: {large}"
    assert all(section.__doc__ for section in sections)
    assert all(
        section.model_config.get("frozen") and section.model_config.get("extra") == "forbid" for section in sections
    )
