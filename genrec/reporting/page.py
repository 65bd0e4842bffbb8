"""From a template and its values to one HTML page that needs no other file."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

TEMPLATES = Path(__file__).parent


def render_page(template: str, **values: Any) -> str:
    """The page of a template in this package; every value is escaped unless it is Markup."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(prose=_prose, breakable=_breakable)
    style = Markup((TEMPLATES / "page.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, **values)


def _prose(text: str) -> Markup:
    """Escaped text in which `words between backticks` are code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _breakable(text: str) -> Markup:
    """Escaped text in which long paths and names may break between their words, and nowhere else."""
    return Markup("<wbr>").join(re.split(r"(?<=[/_])|(?<=\.)(?=[a-z])", text))
