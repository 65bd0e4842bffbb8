"""Turns what is wrong with a config into sentences: key path, value, rule, way out, nearest names."""

import difflib
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from genrec.errors import ConfigError
from genrec.overrides import YAML_ERRORS

ModelT = TypeVar("ModelT", bound=BaseModel)


def read_yaml(path: str | Path) -> Any:
    """The parsed content of a YAML file; raises ConfigError when it is missing, unreadable or not YAML."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        nearby = sorted(str(p) for p in Path("configs").glob("*.yaml"))
        known = f"; configs here: {', '.join(nearby)}" if nearby else ""
        raise ConfigError(f"Config file {path} does not exist{known}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Config file {path} cannot be read: {error}.") from error
    except YAML_ERRORS as error:
        raise ConfigError(f"Config file {path} is not valid YAML: {' '.join(str(error).split())}.") from error


def explain_validation_error(model: type[ModelT], values: dict[str, Any], origin: str) -> ModelT:
    """The validated model; raises ConfigError that lists every problem in the user's words."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_sentence(model, detail) for detail in error.errors(include_url=False)]
        head = f"{origin} has {len(lines)} problem{'s' if len(lines) > 1 else ''}:"
        raise ConfigError("\n".join([head, *(f"  {line}" for line in lines)])) from error


def _sentence(model: type[BaseModel], detail: ErrorDetails) -> str:
    keys, fields = _locate(model, detail["loc"])
    path = ".".join(keys) or "(the whole config)"
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return f"{path} is not a known setting{_nearest(keys[-1], fields)}"
    if kind == "missing":
        return f"{path} is required and missing; add {path}=... or put it into the file."
    if kind == "value_error":
        message = str(detail["ctx"]["error"])
        return message + "." if not keys else f"{path}: {message}."
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        name = detail["ctx"].get("tag")
        if name is None:
            return f"{path}.name is required; it selects the kind of section{_one_of(fields)}"
        return f"{path}.name = {name!r} is not known{_nearest(str(name), fields)}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{path} = {given!r} is refused: it is a section; give it `setting: value` entries, or leave it out."
    rule = (detail["msg"][0].lower() + detail["msg"][1:]).replace("valid tuple", "list").replace("tuple", "list")
    return f"{path} = {given!r} is refused: {rule}; change {path}."


def _one_of(names: list[str]) -> str:
    return f"; one of {', '.join(names)}." if names else "."


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else _one_of(sorted(known))


def _locate(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """Key path without the union tags that pydantic adds, and what may be there.

    That is the field names of the innermost section, or the kinds of it when none is selected.
    """
    keys: list[str] = []
    current: type[BaseModel] | None = model
    pending: list[type[BaseModel]] = []
    for part in loc:
        if pending and isinstance(part, str):
            chosen = [m for m in pending if part in tags_of(m)]
            if chosen:
                current, pending = chosen[0], []
                continue
        keys.append(str(part))
        field = current.model_fields.get(str(part)) if current is not None else None
        candidates = models_in(field.annotation) if field is not None else []
        pending = candidates if len(candidates) > 1 else []
        if field is not None:
            current = candidates[0] if len(candidates) == 1 else None
    names = list(current.model_fields) if current is not None else [tag for model in pending for tag in tags_of(model)]
    return keys, sorted(names)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation allows: one, or the kinds of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is None:
        return []
    return [m for argument in get_args(annotation) for m in models_in(argument)]


def tags_of(model: type[BaseModel]) -> tuple[Any, ...]:
    """The values of `name` that select this kind of section."""
    field = model.model_fields.get("name")
    return get_args(field.annotation) if field is not None else ()
