"""Every `genrec ...` line in the README, the docs and the configs is a command that genrec understands."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from source_tree import ROOT, repository_files, where
from typer.core import TyperGroup

from genrec.cli import app
from genrec.config import load_config
from genrec.tuning.config import load_sweep

FENCE = re.compile(r"^\s*(```|~~~)")
INLINE = re.compile(r"`(genrec [^`]+)`")
PREFIX = re.compile(r"^(\$\s+|[A-Z_]+=\S+\s+|nice\s+|time\s+)*(\S*/)?(?=genrec\s)")
OVERRIDE = re.compile(r"^[a-z_]+(\.[a-z_0-9]+)*=")
PLACEHOLDER = re.compile(r"\.\.\.|…|\b[A-Z][A-Z_]{1,}\b|<\w+>")


def _documents() -> list[Path]:
    documents = [path for path in repository_files() if path.suffix == ".md"]
    assert ROOT / "README.md" in documents
    return documents


def _blocks(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, command) of every genrec command in the fenced blocks of a page; `\\` continues a line."""
    inside, pending = False, ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if FENCE.match(line):
            inside, pending = not inside, ""
            continue
        if not inside:
            continue
        text = pending + line.strip()
        if text.endswith("\\"):
            pending = text[:-1]
            continue
        pending = ""
        yield from ((number, command) for command in _genrec_commands(text))


def _genrec_commands(text: str) -> Iterator[str]:
    """The genrec commands of one shell line: what is left of comments, prefixes, pipes and `&&`."""
    for part in re.split(r"&&|\|\||;|\|", re.sub(r"(^|\s)#.*$", "", text)):
        match = PREFIX.match(part.strip())
        if match:
            yield part.strip()[match.end() :].strip()


def _commands() -> list[tuple[str, str]]:
    found = [(where(path, number), command) for path in _documents() for number, command in _blocks(path)]
    for path in sorted((ROOT / "configs").rglob("*.y*ml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        found += [(where(path, 1), command) for command in _genrec_commands(first.removeprefix("#").strip())]
    return found


def _mentions() -> list[tuple[str, str]]:
    """`genrec train` and the like, inside sentences."""
    return [
        (where(path, number), mention)
        for path in _documents()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for mention in INLINE.findall(line)
    ]


def _parse(command: str) -> None:
    """Parses a command's arguments, without running it; raises typer.TyperException when genrec would refuse them."""
    name, *arguments = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    if name not in group.commands and not name.startswith("-"):
        raise typer.TyperException(f"genrec has no command {name}; it has {', '.join(group.commands)}")
    try:
        if name.startswith("-"):
            group.make_context("genrec", [name, *arguments])
        else:
            group.commands[name].make_context(name, arguments)
    except typer.Exit as ended:
        # --help prints and ends.
        assert ended.exit_code == 0


COMMANDS = _commands()
MENTIONS = _mentions()


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 3, "README and configs show no genrec command: has the way they are written changed?"
    assert any(place.startswith("README.md") for place, _ in COMMANDS)
    assert any(place.startswith("configs/") for place, _ in COMMANDS)


@pytest.mark.parametrize(("place", "command"), COMMANDS, ids=[f"{p} {c}" for p, c in COMMANDS])
def test_command_parses_and_its_config_loads(place: str, command: str) -> None:
    _parse(command)
    arguments = shlex.split(command)[2:]
    configs = [argument for argument in arguments if argument.startswith("configs/")]
    overrides = [argument for argument in arguments if OVERRIDE.match(argument)]
    if configs and command.split()[1] == "tune":
        load_sweep(ROOT / configs[0], overrides)
    elif configs:
        load_config(ROOT / configs[0], overrides)


@pytest.mark.parametrize(("place", "mention"), MENTIONS, ids=[f"{p} {m}" for p, m in MENTIONS])
def test_mentioned_command_exists(place: str, mention: str) -> None:
    if PLACEHOLDER.search(mention) or len(mention.split()) == 2:
        _parse(f"genrec {mention.split()[1]} --help")
    else:
        _parse(mention)


@pytest.mark.parametrize(
    ("line", "commands"),
    [
        ("$ genrec train configs/a.yaml  # a comment", ["genrec train configs/a.yaml"]),
        ("WANDB_MODE=offline .venv/bin/genrec doctor", ["genrec doctor"]),
        ("make install && genrec doctor | cat", ["genrec doctor"]),
        ("python -m genrec train a.yaml", []),
        ("pip install genrec", []),
        ("# genrec train a.yaml", []),
    ],
)
def test_the_reading_of_a_line(line: str, commands: list[str]) -> None:
    assert list(_genrec_commands(line)) == commands


@pytest.mark.parametrize("command", ["genrec no-such-command", "genrec train --no-such-option x"])
def test_a_wrong_command_does_not_parse(command: str) -> None:
    with pytest.raises(typer.TyperException):
        _parse(command)
