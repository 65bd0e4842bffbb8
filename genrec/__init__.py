"""genrec: train large generative recommenders on Ray and DeepSpeed.

The names below are the public API. Each is imported when it is first used, so `import genrec` loads none of torch, ray
and deepspeed.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genrec.config import ExperimentConfig, load_config
    from genrec.errors import ConfigError, DataError, GenrecError, RunError
    from genrec.inference.recommender import Recommender

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "DataError",
    "ExperimentConfig",
    "GenrecError",
    "Recommender",
    "RunError",
    "__version__",
    "load_config",
]

_HOMES = {
    "ConfigError": "genrec.errors",
    "DataError": "genrec.errors",
    "ExperimentConfig": "genrec.config",
    "GenrecError": "genrec.errors",
    "Recommender": "genrec.inference.recommender",
    "RunError": "genrec.errors",
    "load_config": "genrec.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"genrec has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
