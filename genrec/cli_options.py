"""Options of a command made from the fields of sections: names, types, defaults and help have one home."""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from genrec.config import Section


def options_of(sections: Mapping[type[Section], str | None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For a command with `**options`: it gets an option for every field of these sections, under their panels' names.

    None as a name puts the options beside the command's own.
    """

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        described = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.get_default(call_default_factory=True),
                annotation=Annotated[field.annotation, typer.Option(help=field.description, rich_help_panel=panel)],
            )
            for section, panel in sections.items()
            for name, field in section.model_fields.items()
        ]
        command.__signature__ = signature.replace(parameters=[*own, *described])  # type: ignore[attr-defined]
        command.__annotations__ |= {parameter.name: parameter.annotation for parameter in described}
        return command

    return with_options
