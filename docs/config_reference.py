"""Writes docs/config.md, the reference of every setting, from the config models: `make docs`."""

from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from genrec.config import ExperimentConfig

PAGE = Path(__file__).with_name("config.md")

HEAD = """\
# Config reference

Written by `make docs` from `genrec/config.py`, `genrec/config_data.py` and `genrec/config_losses.py`: change those
files, not this page.

A config is a YAML file of the sections below. Precedence: defaults, then the file, then `section.field=value` on the
command line. `genrec config FILE section.field=value` prints what comes out. An unknown key, a wrong type or a value
out of range is refused before any process starts. A section with a `name` has several kinds; the name selects one,
and each kind has its own settings.
"""


def render() -> str:
    """The whole page."""
    # Two sources with the same columns would show that section twice.
    blocks = dict.fromkeys(_sections("", ExperimentConfig))
    return "\n".join([HEAD, *blocks])


def _sections(path: str, model: type[BaseModel]) -> Iterator[str]:
    """The section's heading and table, then those of the sections inside it."""
    tags = _tags(model) if path else ()
    title = f"`{path}`" if path else "The whole file"
    if tags:
        title += " with name " + " or ".join(f"`{tag}`" for tag in tags)
    lines = [f"## {title}", "", " ".join((model.__doc__ or "").split()), ""]
    fields = {name: field for name, field in model.model_fields.items() if not (tags and name == "name")}
    if fields:
        lines += ["| setting | type | default | |", "|---|---|---|---|"]
        lines += [
            f"| `{name}` | {_type(field)} | {_default(field)} | {_rule(field)} |" for name, field in fields.items()
        ]
        lines += [""]
    yield "\n".join(lines)
    for name, field in fields.items():
        for child in _models(field.annotation):
            yield from _sections(f"{path}.{name}".lstrip("."), child)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("name")
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()


def _type(field: FieldInfo) -> str:
    return "section" if _models(field.annotation) else _type_name(field.annotation)


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type_name(argument) for argument in arguments)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"name: {_type_name(arguments[1])}"
    names = {str: "text", int: "integer", float: "number", bool: "true or false", NoneType: "null"}
    return names[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    if isinstance(value, BaseModel):
        kinds = _tags(type(value))
        return f"`{kinds[0]}`" if kinds else "its defaults"
    if value is None or isinstance(value, bool):
        return f"`{str(value).lower().replace('none', 'null')}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


def _rule(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [
        f"{sign} {getattr(limit, name):,}"
        for limit in field.metadata
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None
    ]
    return (field.description or "").replace("|", "\\|") + (f" ({', '.join(limits)})" if limits else "")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
