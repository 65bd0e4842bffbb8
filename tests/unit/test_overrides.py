"""`section.field=value`: how it is read, what it replaces, what it refuses."""

import re
from typing import Any

import pytest

from genrec.errors import ConfigError
from genrec.overrides import apply_overrides, parse_override


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("a=1", ["a"], 1),
        ("a.b.c=x", ["a", "b", "c"], "x"),
        ("a=null", ["a"], None),
        ("a=", ["a"], None),
        ("a=true", ["a"], True),
        ("a=[1,10]", ["a"], [1, 10]),
        ("a={name: sasrec, dim: 3}", ["a"], {"name": "sasrec", "dim": 3}),
        ("a='1'", ["a"], "1"),
        ("data.source.path=s3://bucket/a=b", ["data", "source", "path"], "s3://bucket/a=b"),
    ],
)
def test_parse(text: str, path: list[str], value: Any) -> None:
    assert parse_override(text) == (path, value)


@pytest.mark.parametrize("text", ["a", "=1", "a..b=1", ".a=1", "a.=1", "", "--fresh"])
def test_a_text_that_is_no_override(text: str) -> None:
    with pytest.raises(ConfigError, match=r"must have the form section\.field=value, for instance train\.max_epochs=3"):
        parse_override(text)


@pytest.mark.parametrize("value", ["[1", "2026-13-01"])
def test_a_value_that_is_not_yaml(value: str) -> None:
    text = re.escape(repr(value))
    with pytest.raises(ConfigError, match=rf"the value {text} is not valid YAML; quote it"):
        parse_override(f"a={value}")


def test_overrides_are_set_in_order_on_a_copy() -> None:
    values = {"a": {"b": 1, "c": 2}}
    assert apply_overrides(values, ["a.b=3", "d.e.f=4", "a.b=5"]) == {"a": {"b": 5, "c": 2}, "d": {"e": {"f": 4}}}
    assert values == {"a": {"b": 1, "c": 2}}


def test_a_section_is_replaced_whole_by_a_mapping() -> None:
    assert apply_overrides({"a": {"b": 1}}, ["a={c: 2}"]) == {"a": {"c": 2}}


def test_a_value_has_no_fields() -> None:
    with pytest.raises(ConfigError, match=r"'a\.b\.c=1': a\.b is the value 3, not a section; override it directly"):
        apply_overrides({"a": {"b": 3}}, ["a.b.c=1"])
