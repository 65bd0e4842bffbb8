"""The exception tree: one root, and an exit code for each kind."""

import errno
import sys

import pytest

from genrec.cli import main
from genrec.errors import ConfigError, DataError, GenrecError, ProtocolError, RunError, unusable_path


@pytest.mark.parametrize(
    ("kind", "exit_code"), [(ConfigError, 2), (DataError, 2), (ProtocolError, 2), (RunError, 1), (GenrecError, 1)]
)
def test_every_kind_is_a_genrec_error_with_its_exit_code(kind: type[GenrecError], exit_code: int) -> None:
    with pytest.raises(GenrecError, match="the rule, the values, the way out") as caught:
        raise kind("the rule, the values, the way out")
    assert caught.value.exit_code == exit_code


def test_kinds_do_not_catch_each_other() -> None:
    assert not issubclass(ConfigError, DataError | RunError)
    assert not issubclass(DataError, ConfigError | RunError)
    assert not issubclass(RunError, ConfigError | DataError)


@pytest.mark.parametrize("words", [["status", "a" * 5_000], ["config", "a" * 5_000], ["report", "a" * 5_000]])
def test_a_path_that_the_system_refuses_is_one_short_sentence(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["genrec", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "name too long" in said and said.count("\n") == 1
    assert words[0] == "config" or len(said) < 400


def test_only_paths_that_another_place_mends_are_the_users_mistake() -> None:
    denied = unusable_path(PermissionError(errno.EACCES, "Permission denied", "/srv/runs"))
    assert str(denied) == "/srv/runs cannot be used (Permission denied); mend its permissions, or name another place."
    assert unusable_path(PermissionError(errno.EACCES, "Permission denied")) is None
    assert unusable_path(OSError(errno.EIO, "Input/output error", "/disk")) is None
