"""The exception tree: one root, and an exit code for each kind."""

import pytest

from genrec.errors import ConfigError, DataError, GenrecError, ProtocolError, RunError


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
