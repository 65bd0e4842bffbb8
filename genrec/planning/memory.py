"""Memory of one worker at its fullest moment, part by part: `predict_memory`.

n are the weights of the model, N the workers, E the bytes of a weight as the model computes with it (4, or 2 under
DeepSpeed with bf16), m the elements of optimizer state (2 n with AdamW):

                 torch      ZeRO-0       ZeRO-1           ZeRO-2           ZeRO-3
    weights      4 n        E n          E n              E n              E n / N, small ones whole
    optimizer    4 m        4 m          (4 n + 4 m) / N  (4 n + 4 m) / N  (4 n + 4 m) / N
    gradients    4 n        E n          E n              E n              2 * 4 n / N, and E n while they arrive
    reduced in   4 n        E n          E n              E n              E n

ZeRO-1 and 2 copy gradients into one bucket and reduce a flat copy of it, so while a step is reduced both are there
(deepspeed/runtime/zero/stage_1_and_2.py; the bucket has room for 5e8 elements, which a GPU sets aside and a CPU only
touches as far as it is filled). Optimizer state is master weights and moments. ZeRO-3 gathers the item table whole
wherever it is used, and its gradient is whole until it is scattered; it gathers the layers' weights in the forward pass
and keeps those that the backward pass uses again within 1e9 elements. Which moment is the fullest is worked out: the
loss, the backward pass, its end, or the update; on a GPU the start too, when every worker holds all weights in fp32,
before DeepSpeed casts and shards them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from genrec.config import ExperimentConfig, FullSoftmaxConfig
from genrec.config_models import DecoderLayersConfig, ESASRecConfig, HSTUConfig, TigerConfig
from genrec.data.plan import MIN_BLOCK_TOKENS
from genrec.losses.full import tile_shape
from genrec.models.decoder import feed_forward_dim_of
from genrec.planning.activations import Activations, Load
from genrec.planning.model_size import ModelSize

BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's `reduce_bucket_size`, which genrec leaves as it is."""

REUSED_ELEMENTS = 1_000_000_000
"""DeepSpeed's `stage3_max_reuse_distance` and `stage3_max_live_parameters`, which genrec leaves as they are."""

EVENT_BYTES = 40
"""A micro-batch holds five columns of int64 an event."""

MIB = 2.0**20

PIPELINE_BYTES = 20 * MIB
"""Files, columns and rows that a worker's stream holds on a CPU, whatever the step."""

RUNTIME_BYTES: dict[int | None, float] = {None: 62 * MIB, 0: 62 * MIB, 1: 132 * MIB, 2: 119 * MIB, 3: 158 * MIB}
"""What libraries take once an engine is built, beyond torch and DeepSpeed themselves, by ZeRO stage."""

HOLES = 0.18
"""Of activations and scores: freed memory that the C library keeps, because the next micro-batch is shaped otherwise.

Both were fitted to the 24 SASRec cases of benchmarks/matrices/memory.yaml, and are checked by its 24 HSTU cases
(benchmarks/README.md).
"""

GIVEN_BACK_BYTES = 32 * MIB
"""glibc returns larger blocks to the system when they are freed (DEFAULT_MMAP_THRESHOLD_MAX); it keeps smaller ones."""

Moment = Literal["start", "loss", "backward", "end of backward", "update"]


@dataclass(frozen=True, slots=True)
class MemoryParts:
    """Bytes of one worker at its fullest moment; `host` are bytes in host memory (offload), outside of the total.

    item_table holds the table's own weights, gradient and optimizer state; weights, gradients and optimizer are those
    of all other weights. logits are what the loss holds while it works. runtime is what libraries take once they run,
    and allocator what is freed and not given back; both are 0 on a GPU.
    """

    weights: float
    gradients: float
    optimizer: float
    item_table: float
    activations: float
    logits: float
    communication: float
    data: float
    runtime: float
    moment: Moment
    allocator: float = 0.0
    host: float = 0.0

    @property
    def least(self) -> float:
        """Bytes that a worker cannot do without: the total without data, runtime and allocator."""
        return self.total - self.data - self.runtime - self.allocator

    @property
    def total(self) -> float:
        """Bytes of all parts on the device."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """Bytes by the name of the part."""
        names = (
            "weights",
            "gradients",
            "optimizer",
            "item_table",
            "activations",
            "logits",
            "communication",
            "data",
            "runtime",
            "allocator",
        )
        return {name: float(getattr(self, name)) for name in names}


@dataclass(frozen=True, slots=True)
class Sharding:
    """How an engine keeps its state: `stage` None is plain PyTorch."""

    stage: int | None
    weight_bytes: int
    workers: int
    offload: bool
    on_gpu: bool

    def weights(self, elements: float, whole: float = 0.0) -> float:
        """Bytes of weights between two steps."""
        if self.stage == 3:
            return self.weight_bytes * ((elements - whole) / self.workers + whole)
        return self.weight_bytes * elements

    def optimizer(self, elements: float, moments: float) -> float:
        """Bytes of master weights and moments."""
        if self.stage is None or (self.stage == 0 and self.weight_bytes == 4):
            return 4 * moments
        return 4 * (elements + moments) / self.workers

    def held_gradients(self, elements: float, accumulates: bool) -> float:
        """Bytes of gradients during a forward pass."""
        if self.stage == 3:
            return 8 * elements / self.workers
        if self.stage == 0 and self.weight_bytes == 2:
            return 4 * elements
        return self.weight_bytes * elements if accumulates else 0.0

    def fresh_gradients(self, elements: float, accumulates: bool) -> float:
        """Bytes of gradients when a backward pass has made them all."""
        return self.held_gradients(elements, accumulates) + (
            0.0 if accumulates and self.stage in (None, 0) else self.weight_bytes * elements
        )


def sharding_of(config: ExperimentConfig, workers: int) -> Sharding:
    """What `engine.` and `cluster.` say about state."""
    engine = config.engine
    stage = getattr(engine, "zero_stage", None)
    return Sharding(
        stage=stage,
        weight_bytes=2 if stage is not None and engine.precision == "bf16" else 4,
        workers=workers,
        offload=bool(getattr(engine, "offload_optimizer", False)),
        on_gpu=config.cluster.gpus_per_worker > 0,
    )


def predict_memory(
    config: ExperimentConfig, size: ModelSize, activations: Activations, load: Load, *, items: int, workers: int
) -> MemoryParts:
    """The memory of a worker whose heaviest micro-batch is `load`, for a catalogue that training knows `items` of."""
    sharding = sharding_of(config, workers)
    accumulates = config.accumulation(workers) > 1
    state = _state(config, size, sharding, load)
    loss = _Loss.of(config, load, items)
    e, table, other = sharding.weight_bytes, size.table, size.other
    gathered = e * table if sharding.stage == 3 else 0.0
    live = e * min(other - size.whole, REUSED_ELEMENTS) if sharding.stage == 3 and workers > 1 else 0.0
    held = sharding.held_gradients(other, accumulates)
    held_table = sharding.held_gradients(table, accumulates)
    kept = activations.kept(load, items)
    table_gradient = 4.0 * items * config.model.dim if loss.whole_table else 0.0
    bucket = _bucket(sharding, size)

    def at(moment: Moment, **parts: float) -> MemoryParts:
        grown = replace(state, moment=moment, gradients=held, item_table=state.item_table + held_table + gathered)
        grown = replace(grown, weights=state.weights + live)
        return replace(grown, **{name: getattr(grown, name) + value for name, value in parts.items()})

    loss_moment = max(loss.tile, loss.products)
    transient = 2 * e * load.tokens * _widest(config)
    after_loss = max(0.0, kept - loss.saved(activations, load, items))
    fresh, fresh_table = sharding.fresh_gradients(other, accumulates), sharding.fresh_gradients(table, accumulates)
    moments = [
        at(
            "loss",
            activations=kept - loss.saved(activations, load, items),
            logits=loss_moment + loss.saved(activations, load, items),
        ),
        at("backward", activations=after_loss + transient, logits=table_gradient),
        at(
            "end of backward",
            gradients=fresh - held,
            item_table=fresh_table - held_table + e * table,
            communication=bucket.standing,
        ),
        at(
            "update",
            weights=-live,
            gradients=fresh - held,
            item_table=fresh_table - held_table - gathered,
            communication=bucket.standing + bucket.flat,
        ),
    ]
    if sharding.on_gpu:
        return max(*moments, _at_start(state, size), key=lambda parts: parts.total)
    fullest = max(moments, key=lambda parts: parts.total)
    return _never_given_back(fullest, moments, e * table)


def _at_start(state: MemoryParts, size: ModelSize) -> MemoryParts:
    """All weights whole in fp32, as the model is built and moved to the device (training/engine.py)."""
    table = 4.0 * size.table + size.buffers
    return replace(state, moment="start", weights=4.0 * size.other, optimizer=0.0, item_table=table, data=0.0)


def _never_given_back(fullest: MemoryParts, moments: Sequence[MemoryParts], table_bytes: float) -> MemoryParts:
    """Resident memory on a CPU: every part at its own peak.

    The C library keeps what one part has freed in pieces in which blocks of another part, of other sizes, find no
    room. Only the blocks of a large table go back to the system, so that its gradients and what is sent take turns.
    """
    grown = replace(fullest, **{name: max(getattr(one, name) for one in moments) for name in fullest.parts()})
    if table_bytes > GIVEN_BACK_BYTES:
        fullest = max(moments, key=lambda one: one.item_table + one.communication)
        grown = replace(grown, item_table=fullest.item_table, communication=fullest.communication)
    return replace(grown, allocator=HOLES * (grown.activations + grown.logits))


def _state(config: ExperimentConfig, size: ModelSize, sharding: Sharding, load: Load) -> MemoryParts:
    """What a worker holds between two steps."""
    averaged = 0.0 if config.optimizer.ema_decay is None else 4.0
    share = sharding.workers if sharding.stage == 3 else 1
    optimizer = sharding.optimizer(size.other, size.other_moments)
    table_moments = 0.0 if size.rowwise_table else size.table_moments
    table_optimizer = sharding.optimizer(size.table, table_moments)
    host = 0.0
    if sharding.offload:
        host = optimizer + table_optimizer + 4 * size.total / sharding.workers
        optimizer = table_optimizer = 0.0
    rows = 4.0 * size.table_moments if size.rowwise_table else 0.0  # whole on every worker
    return MemoryParts(
        weights=sharding.weights(size.other, size.whole),
        gradients=0.0,
        optimizer=optimizer + averaged * size.other / share,
        item_table=sharding.weights(size.table) + table_optimizer + rows + averaged * size.table / share + size.buffers,
        activations=0.0,
        logits=0.0,
        communication=0.0,
        data=_data(config, load, sharding.workers) + (0.0 if sharding.on_gpu else PIPELINE_BYTES),
        runtime=0.0 if sharding.on_gpu else RUNTIME_BYTES[sharding.stage],
        moment="update",
        host=host,
    )


def _data(config: ExperimentConfig, load: Load, workers: int) -> float:
    """Micro-batches in flight: two blocks of steps that wait, and the one that is trained on."""
    batch = config.batch
    steps = max(batch.steps_per_block, MIN_BLOCK_TOKENS // batch.tokens_per_step)
    return EVENT_BYTES * load.tokens * (1 + 2 * steps * config.accumulation(workers))


@dataclass(frozen=True, slots=True)
class _Bucket:
    """What reducing gradients takes: `standing` while they arrive, `flat` while they are reduced."""

    standing: float
    flat: float


def _bucket(sharding: Sharding, size: ModelSize) -> _Bucket:
    e, n = sharding.weight_bytes, size.total
    whole = e * min(n, BUCKET_ELEMENTS)
    if sharding.stage in (None, 0):
        return _Bucket(0.0, (4.0 if sharding.stage is None else e) * n if sharding.workers > 1 else 0.0)
    if sharding.on_gpu:
        return _Bucket(float(e * BUCKET_ELEMENTS), whole)
    return _Bucket(0.0, whole)


@dataclass(frozen=True, slots=True)
class _Loss:
    """The loss at work: one `tile` of scores, then `products` of the gradients that it kept with the loss's own."""

    tile: float
    products: float
    whole_table: bool

    @classmethod
    def of(cls, config: ExperimentConfig, load: Load, items: int) -> "_Loss":
        loss, dim, tokens = config.loss, config.model.dim, load.tokens
        normalized = 2 if getattr(config.model, "l2_normalize", False) else 1
        on_cpu = not config.cluster.gpus_per_worker
        whole = isinstance(loss, FullSoftmaxConfig) or loss.per_position
        if isinstance(loss, FullSoftmaxConfig):
            rows, columns = tile_shape(max(1, int(tokens)), items, loss.max_logits_bytes // 4, on_cpu)
            tile = 4.0 * rows * columns
        else:
            mask = 0 if on_cpu or loss.per_position else 1  # a byte a score (losses/contrast.py)
            needed = (4.0 + mask) * tokens * loss.num_negatives * (dim if loss.per_position else 1)
            tile = min(needed, float(loss.max_logits_bytes))
        vectors = items if whole else tokens + getattr(loss, "num_negatives", 0)
        return cls(tile, normalized * 4.0 * dim * (tokens + vectors), whole)

    def saved(self, activations: Activations, load: Load, items: int) -> float:
        """Bytes that the loss itself keeps for its backward pass: what grows with the items."""
        return activations.ends.per_item * items


def _widest(config: ExperimentConfig) -> int:
    """Columns of the widest matrix product in a layer."""
    model = config.model
    if isinstance(model, HSTUConfig):
        return model.num_heads * (model.value_dim + 2 * model.query_dim)
    if isinstance(model, TigerConfig):
        return max(3 * model.num_heads * model.head_dim, model.feed_forward_dim)
    if isinstance(model, DecoderLayersConfig):
        return max(3 * model.dim, 2 * feed_forward_dim_of(model))
    inner = model.feed_forward_dim or (4 * model.dim if isinstance(model, ESASRecConfig) else model.dim)
    return max(3 * model.dim, 2 * inner if isinstance(model, ESASRecConfig) else inner)
