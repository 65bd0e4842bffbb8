"""Every setting has a description and is read somewhere: no dead flags."""

import ast
from collections.abc import Iterator

import pytest
from pydantic.fields import FieldInfo
from source_tree import PACKAGE, package_files, tree_of

from genrec import config
from genrec.config import Section


def _fields() -> Iterator[tuple[type[Section], str, FieldInfo]]:
    for value in vars(config).values():
        if isinstance(value, type) and issubclass(value, Section) and value is not Section:
            yield from ((value, name, field) for name, field in value.model_fields.items())


FIELDS = list(_fields())


def _is_tag(section: type[Section], name: str) -> bool:
    # The `name` that selects a kind of section is read by pydantic.
    return name == "name" and section is not config.ExperimentConfig


@pytest.fixture(scope="module")
def attributes_read() -> set[str]:
    """The names behind a dot anywhere in the package, but in config.py."""
    return {
        node.attr
        for path in package_files()
        if path != PACKAGE / "config.py"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def test_there_are_fields() -> None:
    assert len(FIELDS) > 50


def test_every_field_is_read(attributes_read: set[str]) -> None:
    dead = [f"{section.__name__}.{name}" for section, name, _ in FIELDS if not _is_tag(section, name)]
    dead = [path for path in dead if path.split(".")[1] not in attributes_read]
    assert not dead, f"no code reads these settings; use them or remove them: {dead}"


def test_every_field_is_described() -> None:
    wrong = [f"{section.__name__}.{name}" for section, name, field in FIELDS if not _is_tag(section, name)]
    described = {f"{section.__name__}.{name}" for section, name, field in FIELDS if field.description}
    assert not [path for path in wrong if path not in described]


def test_sections_are_small_and_documented() -> None:
    sections = {section for section, _, _ in FIELDS}
    large = [s.__name__ for s in sections if len(s.model_fields) > 12 and s is not config.ExperimentConfig]
    assert not large, f"more than 12 settings: {large}"
    assert all(section.__doc__ for section in sections)
    assert all(
        section.model_config.get("frozen") and section.model_config.get("extra") == "forbid" for section in sections
    )
