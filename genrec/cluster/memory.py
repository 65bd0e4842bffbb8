"""Whether a worker fits the largest machine of a cluster: asked once the cluster is known, before workers start."""

from collections.abc import Sequence
from dataclasses import replace

from genrec.cluster.room import Machine
from genrec.config import AutoConfig, ExperimentConfig
from genrec.data.manifest import load_manifest
from genrec.planning.fit import generous_guess, is_known

ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""The label in which Ray names a node's GPUs."""


def check_cluster_memory(config: ExperimentConfig, machines: Sequence[Machine]) -> None:
    """Raises ConfigError when a worker that has the largest eligible machine, or GPU, to itself cannot fit there.

    A run that passes may still be too large, where several workers share a machine: only what is certain is refused.
    Not judged are machines whose memory is not known, GPUs whose name is not, models without formulas, and
    `engine.name: auto`, which has picked an engine by then.
    """
    on_gpu = config.cluster.gpus_per_worker > 0
    eligible = [machine for machine in machines if machine.has(config.placement.worker_labels)]
    if on_gpu:
        eligible = [machine for machine in eligible if machine.gpus]
    hosts = [machine.memory_bytes for machine in eligible]
    if not eligible or not all(hosts) or isinstance(config.engine, AutoConfig) or not is_known(config):
        return
    num_items = load_manifest(config.data.prepared).num_items
    if not on_gpu and generous_guess(config, num_items) < max(hosts):
        return
    from genrec.planning.choose import refuse_what_cannot_fit  # imports torch
    from genrec.planning.hardware import memory_of
    from genrec.planning.machine import this_machine

    device = max(hosts)
    if on_gpu:
        found = [memory_of(machine.labels.get(ACCELERATOR_LABEL, "")) for machine in eligible]
        sizes = [size for size in found if size is not None]
        if len(sizes) < len(found):
            return
        device = float(max(sizes))
    # Rates decide nothing here; only what fits does, so those of this machine serve.
    alike = this_machine(config, measure=False)
    refuse_what_cannot_fit(
        config,
        replace(
            alike,
            name=f"the largest of {len(eligible)} machines",
            nodes=config.cluster.min_workers,
            workers_per_node=1,
            on_gpu=on_gpu,
            memory_bytes=device,
            host_memory_bytes=max(hosts),
        ),
    )
