"""`section.field=value` overrides: text to a nested dictionary, and a dictionary merged over another.

Values are read as YAML, so `train.max_epochs=3` is an integer, `cluster.workers=null` is None and
`evaluation.ks=[1,10]` is a list.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from genrec.errors import ConfigError

YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)
"""What reading a YAML text raises: ValueError for a date such as 2026-13-01, RecursionError for thousands of `[`."""


def parse_override(text: str) -> tuple[list[str], Any]:
    """Key path and value of one `a.b=value` override.

    Raises ConfigError when there is no `=`, a key is empty, or the value is not YAML.
    """
    key, separator, raw = text.partition("=")
    path = key.strip().split(".")
    if not separator or not all(path):
        raise ConfigError(f"Override {text!r} must have the form section.field=value, for instance train.max_epochs=3.")
    try:
        return path, yaml.safe_load(raw)
    except YAML_ERRORS as error:
        raise ConfigError(f"Override {text!r}: the value {raw!r} is not valid YAML; quote it.") from error


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `values` with every override set; later overrides win."""
    result = copy.deepcopy(dict(values))
    for text in overrides:
        path, value = parse_override(text)
        node: dict[str, Any] = result
        for depth, key in enumerate(path[:-1]):
            child = node.setdefault(key, {})
            if not isinstance(child, dict):
                raise ConfigError(
                    f"Override {text!r}: {'.'.join(path[: depth + 1])} is the value {child!r}, not a section; "
                    "override it directly."
                )
            node = child
        node[path[-1]] = value
    return result
