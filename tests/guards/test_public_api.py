"""What `import genrec` offers: exactly these names, each of which can be had."""

import importlib.metadata

import pytest

import genrec

NAMES = [
    "ConfigError",
    "DataError",
    "ExperimentConfig",
    "GenrecError",
    "Recommender",
    "RunError",
    "__version__",
    "load_config",
]


def test_exported_names() -> None:
    assert sorted(genrec.__all__) == NAMES
    assert sorted(dir(genrec)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_exported_name_can_be_had(name: str) -> None:
    value = getattr(genrec, name)
    assert name == "__version__" or (value.__name__ == name and value.__module__.startswith("genrec."))


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known() -> None:
    with pytest.raises(AttributeError, match=r"genrec has no 'recommend'.*Recommender"):
        _ = genrec.recommend


def test_version_is_the_installed_one() -> None:
    assert genrec.__version__ == importlib.metadata.version("genrec"), "run `make install` after changing setup.py"
