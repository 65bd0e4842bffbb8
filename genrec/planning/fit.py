"""Whether a config may be too large for this machine, told without torch: most are far from it, and start at once."""

import os
from pathlib import Path

from genrec.config import AutoConfig, ExperimentConfig
from genrec.config_models import CODE_MODELS, DecoderConfig, ESASRecConfig, HSTUConfig, SASRecConfig, TigerConfig
from genrec.data.manifest import Manifest
from genrec.errors import ConfigError

TABLE_COPIES = 10
"""Copies of the weights that no engine holds: gradients twice, buckets, master weights, moments, average."""

BYTES_PER_EVENT_AND_WIDTH = 400
"""More than a layer keeps of an event for each column of the model, in fp32; attention's pairs are beside it."""

BYTES_PER_PAIR = 64


TOKENS_PER_ITEM = 8
"""More codes than an item has, where histories are codes."""


KNOWN_MODELS = (SASRecConfig, ESASRecConfig, HSTUConfig, DecoderConfig, *CODE_MODELS)


def is_known(config: ExperimentConfig) -> bool:
    """Whether there are formulas for the config's model; one that was added has none until they are written."""
    return isinstance(config.model, KNOWN_MODELS)


def check_known(config: ExperimentConfig) -> None:
    """Raises ConfigError for a model without formulas."""
    if not is_known(config):
        raise ConfigError(
            f"model.name = {config.model.name!r} cannot be planned, because genrec/planning/flops.py and memory.py "
            "have no formulas for it; add them there, or train without `genrec plan` and engine.name=auto."
        )


def check_memory(config: ExperimentConfig, manifest: Manifest, launcher: str) -> None:
    """Raises ConfigError when a worker on this machine needs more memory than it can have, with the nearest that fits.

    A cluster at RAY_ADDRESS is other machines than this one, which `genrec.cluster.memory` judges. Not judged are
    `engine.name: auto`, which looks for an engine that fits, and models without formulas. The careful prediction
    (choose.py) is made only where a generous guess is not far below what there is.
    """
    elsewhere = launcher == "ray" and bool(os.environ.get("RAY_ADDRESS"))
    if elsewhere or isinstance(config.engine, AutoConfig) or not is_known(config):
        return
    workers = config.cluster.min_workers
    if not config.cluster.gpus_per_worker and generous_guess(config, manifest.num_items) < available_bytes() / workers:
        return
    from genrec.planning.choose import refuse_what_cannot_fit  # imports torch

    refuse_what_cannot_fit(config)


def generous_guess(config: ExperimentConfig, num_items: int) -> float:
    """Bytes of a worker, rather too many."""
    model, batch = config.model, config.batch
    tokens, length = batch.tokens_per_step / batch.micro_batches_per_step, config.sequence.max_length
    if config.writes_codes:
        tokens, length = tokens * TOKENS_PER_ITEM, length * TOKENS_PER_ITEM
    if isinstance(model, TigerConfig):  # a history for each event
        tokens, length = tokens * model.max_history, model.max_history * TOKENS_PER_ITEM
    weights = (num_items + 1 + 64 * model.num_layers * model.dim) * model.dim
    layer = BYTES_PER_EVENT_AND_WIDTH * model.dim + BYTES_PER_PAIR * model.num_heads * length
    return 4.0 * TABLE_COPIES * weights + tokens * model.num_layers * layer + 4 * config.loss.max_logits_bytes


def available_bytes() -> float:
    """Main memory that new processes can have: what the system calls available, or what is left of a control group."""
    found = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = (line.split() for line in meminfo.read_text(encoding="utf-8").splitlines())
        found = next((1024.0 * int(words[1]) for words in lines if words[0] == "MemAvailable:"), found)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8"))
        stat = dict(
            line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text(encoding="utf-8").splitlines()
        )
    except OSError:  # no control group of the second version: what the system says counts
        return found
    if limit == "max":
        return found
    return min(found, float(limit) - used + int(stat.get("inactive_file", 0)))
