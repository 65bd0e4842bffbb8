"""Whether a trial may start: its config is checked, built without memory, and compared with the machines.

`planning.fit.check_memory` says whether a worker has the memory; the workers of other trials are not in its count.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest
from genrec.errors import GenrecError
from genrec.tuning.records import SweepDir, run_name, trial_id
from genrec.tuning.space import Params, config_with


@dataclass(frozen=True, slots=True)
class Admitted:
    """A trial that may start."""

    config: ExperimentConfig
    num_parameters: int


Cluster = Callable[[ExperimentConfig], None]
"""Raises ConfigError when the machines cannot hold the workers of a config: `cluster.resources.check_resources`."""


class Gate:
    """Says which trials may start."""

    def __init__(self, folder: SweepDir, base: Mapping[str, Any], manifest: Manifest, cluster: Cluster) -> None:
        self.folder = folder
        self.base = base
        self.manifest = manifest
        self.cluster = cluster

    def admit(self, number: int, params: Params) -> Admitted:
        """The config and the size of a trial; raises ConfigError with the reason when it must not start."""
        from genrec.planning.fit import check_memory
        from genrec.training.start import check_fit

        config = trial_config(self.folder, self.base, number, params)
        check_fit(config, self.manifest)
        self.cluster(config)
        num_parameters = count_parameters(config, self.manifest)
        check_memory(config, self.manifest, "ray")
        return Admitted(config, num_parameters)


def trial_config(
    folder: SweepDir, base: Mapping[str, Any], number: int, params: Params, life: int = 0
) -> ExperimentConfig:
    """The config of a trial's run; raises ConfigError when its settings do not fit together."""
    trial = trial_id(number)
    values = {**base, "name": run_name(trial, life), "runs_dir": str(folder.trials_path)}
    return config_with(values, params, f"Trial {trial}")


def count_parameters(config: ExperimentConfig, manifest: Manifest) -> int:
    """Trained weights of a config's model, which is built without memory."""
    import torch

    from genrec.data.item_types import read_item_types
    from genrec.data.item_vectors import vectors_for
    from genrec.models.build import build_model
    from genrec.semantic.run_map import semantic_ids_for

    prepared = config.data.prepared
    types, vectors = read_item_types(prepared), vectors_for(config, prepared)
    ids = semantic_ids_for(config, manifest.num_items)
    with torch.device("meta"):
        model = build_model(config, manifest.num_items, types, len(manifest.actions), vectors, ids)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def reason_of(error: GenrecError) -> str:
    """An error on one line, for a table."""
    return " ".join(str(error).split())
