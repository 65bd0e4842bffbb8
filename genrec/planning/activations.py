"""What a forward pass keeps for the backward pass, counted on the real layers and not guessed.

A model of one and of two of the config's layers, with a small item table, runs forward on a few short sequences, and
`saved_tensors_hooks` sees every tensor that autograd keeps. Bytes are counted once for each storage, without weights
and buffers; only shapes count, so no weight is drawn and no product of matrices is computed. They are exactly linear in

    layers, events T, attention pairs P (rows * keys of the tiles that the CPU kernels compute), items I

so four small passes of each give the coefficients, and any size follows. On a GPU softmax attention keeps no pairs,
because torch's fused kernel computes them again; HSTU's attention is written out on every device and keeps them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genrec.config import ExperimentConfig
from genrec.config_models import HSTUConfig
from genrec.data.batch import Batch, batch_from_arrays
from genrec.errors import ConfigError
from genrec.models.attention import row_blocks
from genrec.models.base import SequenceModel
from genrec.models.build import build_model
from genrec.models.jagged import jagged_layout
from genrec.planning.code_flops import attended_lengths
from genrec.planning.fit import available_bytes
from genrec.planning.model_size import without_vectors
from genrec.planning.text import size_text
from genrec.planning.workload import ACTIONS_WITHOUT_DATA
from genrec.semantic.run_map import made_up_ids

SMALL_ITEMS, LARGE_ITEMS = 40, 80


class Load(NamedTuple):
    """What of a micro-batch decides its memory: events, padded slots of attention, and pairs of its tiles."""

    tokens: float
    slots: float
    pairs: float


@dataclass(frozen=True, slots=True)
class Linear:
    """fixed + per_token * T + per_pair * P + per_item * I, in bytes."""

    fixed: float
    per_token: float
    per_pair: float
    per_item: float = 0.0

    def at(self, load: Load, items: int = 0) -> float:
        """Bytes of a micro-batch and a catalogue."""
        return max(0.0, self.fixed + self.per_token * load.tokens + self.per_pair * load.pairs + self.per_item * items)


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes that are kept: `ends` of input, output and loss, `layer` of one layer, `inside` of one recomputed layer."""

    ends: Linear
    layer: Linear
    inside: Linear
    num_layers: int

    def kept(self, load: Load, items: int) -> float:
        """All that is kept when the loss is known; a recomputed layer counts while its backward pass runs."""
        return self.ends.at(load, items) + self.num_layers * self.layer.at(load) + self.inside.at(load)

    def touched(self, load: Load, items: int) -> float:
        """All that would be kept if no layer were recomputed: what the element-wise parts of a pass work on."""
        return self.ends.at(load, items) + self.num_layers * (self.layer.at(load) + self.inside.at(load))


def load_of(
    lengths: Sequence[int] | npt.NDArray[np.integer], config: ExperimentConfig | None = None, num_levels: int = 0
) -> Load:
    """The load of a micro-batch with windows of these lengths.

    Of a model that writes codes (`config`, and how many an item has) the load is that of the sequences that its
    attention over histories sees.
    """
    if config is not None and config.writes_codes:
        lengths = attended_lengths(config, num_levels, np.asarray(lengths, dtype=np.int64))
    borders = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))])
    groups = jagged_layout(torch.from_numpy(borders), num_heads=1).groups
    pairs = sum(
        group.num_sequences * sum((last - first) * last for first, last in row_blocks(group.length)) for group in groups
    )
    return Load(float(borders[-1]), float(sum(g.num_sequences * g.length for g in groups)), float(pairs))


def measure_activations(
    config: ExperimentConfig, *, on_gpu: bool = False, code_sizes: tuple[int, ...] = ()
) -> Activations:
    """The coefficients of a config's model and loss; takes a moment, on this machine's CPU.

    `code_sizes` are the levels of the map, where the model writes codes. Raises ConfigError when two layers alone are
    more than this machine's memory.
    """
    _check_room(config, code_sizes)
    one, two = _fit(config, 1, code_sizes), _fit(config, 2, code_sizes)
    layer = Linear(two.fixed - one.fixed, two.per_token - one.per_token, two.per_pair - one.per_pair)
    inside = Linear(0.0, 0.0, 0.0)
    if getattr(config.model, "recompute", "none") != "none":
        plain = config.model_copy(update={"model": config.model.model_copy(update={"recompute": "none"})})
        kept = measure_activations(plain, on_gpu=on_gpu, code_sizes=code_sizes).layer
        inside = Linear(kept.fixed, kept.per_token - layer.per_token, kept.per_pair - layer.per_pair)
    ends = Linear(one.fixed - layer.fixed, one.per_token - layer.per_token, one.per_pair - layer.per_pair, one.per_item)
    if on_gpu and not isinstance(config.model, HSTUConfig):
        ends, layer, inside = (Linear(x.fixed, x.per_token, 0.0, x.per_item) for x in (ends, layer, inside))
    return Activations(ends, layer, inside, config.model.num_layers)


def _check_room(config: ExperimentConfig, code_sizes: tuple[int, ...]) -> None:
    two_layers = config.model_copy(update={"model": config.model.model_copy(update={"num_layers": 2})})
    with torch.device("meta"):
        weights = sum(weight.nbytes for weight in _small_model(two_layers, LARGE_ITEMS, code_sizes).parameters())
    available = available_bytes()
    if weights > available:
        raise ConfigError(
            f"Two layers of {config.model.name} with model.dim={config.model.dim} are {size_text(weights)} of weights, "
            f"and this machine has {size_text(available)} of free memory; use a smaller model.dim."
        )


def _fit(config: ExperimentConfig, num_layers: int, code_sizes: tuple[int, ...]) -> Linear:
    small = config.model_copy(update={"model": config.model.model_copy(update={"num_layers": num_layers})})
    longest = min(32, config.sequence.max_length)
    shapes = [(2, longest // 2), (4, longest // 2), (2, longest)]
    model = model_as_trained(small, SMALL_ITEMS, code_sizes)
    rows, values = [], []
    for count, length in shapes:
        load = load_of([length] * count, small, len(code_sizes))
        rows.append([1.0, load.tokens, load.pairs])
        values.append(saved_bytes(small, model, SMALL_ITEMS, [length] * count))
    fixed, per_token, per_pair = np.linalg.solve(np.array(rows), np.array(values)).tolist()
    del model
    larger = model_as_trained(small, LARGE_ITEMS, code_sizes)
    more = saved_bytes(small, larger, LARGE_ITEMS, [shapes[0][1]] * shapes[0][0])
    per_item = (more - values[0]) / (LARGE_ITEMS - SMALL_ITEMS)
    return Linear(fixed - per_item * SMALL_ITEMS, per_token, per_pair, per_item)


def saved_bytes(config: ExperimentConfig, model: SequenceModel, num_items: int, lengths: list[int]) -> float:
    """Bytes that a training forward pass of a model keeps for its backward pass, which does not follow."""
    batch, engine = _batch(config, num_items, lengths), config.engine
    held = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    held |= {value.untyped_storage().data_ptr() for value in _tensors(batch)}
    kept: dict[int, torch.UntypedStorage] = {}  # the storages themselves, so that no address is used twice

    def keep(tensor: Tensor) -> None:
        # A tensor that is kept would keep the graph, which keeps this function: it would never be freed.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage

    with (
        torch.random.fork_rng(devices=()),
        torch.autograd.graph.saved_tensors_hooks(keep, _never_read),
        torch.autocast("cpu", torch.bfloat16, enabled=engine.precision == "bf16" and not _is_whole_bf16(config)),
        _ShapesOnly(),  # type: ignore[no-untyped-call]
    ):
        loss = model(batch).loss_sum
        total = float(sum(storage.nbytes() for storage in kept.values()))
    del loss
    return total


def _never_read(_: object) -> Tensor:
    raise RuntimeError("Nothing was kept for a backward pass.")


class _ShapesOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Products of matrices and random numbers are zeros at once: a CPU may have no units for bf16."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet in _PRODUCTS:
            left, right = args[_PRODUCTS[packet] :][:2]
            return left.new_zeros((*left.shape[:-1], right.shape[-1]))
        if packet in _DRAWN:
            return args[0].zero_()
        return func(*args, **(kwargs or {}))


_PRODUCTS: dict[Callable[..., Any], int] = {
    torch.ops.aten.mm: 0,
    torch.ops.aten.bmm: 0,
    torch.ops.aten.addmm: 1,
    torch.ops.aten.baddbmm: 1,
}
"""Where the two matrices stand among the arguments."""
_DRAWN = (torch.ops.aten.normal_, torch.ops.aten.uniform_)


def _is_whole_bf16(config: ExperimentConfig) -> bool:
    """Whether the weights themselves are bf16, as DeepSpeed has them."""
    return config.engine.precision == "bf16" and config.engine.name != "torch"


def model_as_trained(config: ExperimentConfig, num_items: int, code_sizes: tuple[int, ...] = ()) -> SequenceModel:
    """The config's model with weights of zeros, in the precision that its engine keeps them in."""
    with _ShapesOnly():  # type: ignore[no-untyped-call]
        model = _small_model(config, num_items, code_sizes)
    return model.to(torch.bfloat16) if _is_whole_bf16(config) else model


def _small_model(config: ExperimentConfig, num_items: int, code_sizes: tuple[int, ...]) -> SequenceModel:
    ids = made_up_ids(num_items, code_sizes) if config.writes_codes else None
    types = np.zeros(num_items + 1, dtype=np.uint8) if config.inputs.item_types else None
    with torch.random.fork_rng(devices=()):
        model = build_model(without_vectors(config), num_items, types, ACTIONS_WITHOUT_DATA, semantic_ids=ids)
    model.item_table.train_counts = torch.ones(num_items + 1, dtype=torch.int64)
    return model.train()


def _batch(config: ExperimentConfig, num_items: int, lengths: list[int]) -> Batch:
    tokens = sum(lengths)
    items = np.arange(tokens) % num_items + 1
    batch = batch_from_arrays(items, np.concatenate([[0], np.cumsum(lengths)]), times=np.arange(tokens), targets=items)
    following = {
        "negatives": torch.from_numpy(np.arange(config.loss.num_in_batch) % num_items + 1),
        "next_items": batch.items,
        "next_actions": torch.ones(tokens, dtype=torch.int64),
        "next_values": torch.ones(tokens),
        "step_weight": float(tokens),
        "step_actions": tokens,
        "step_values": tokens,
    }
    weighted = config.loss.action_weights or config.loss.value_weights
    return batch_with(batch, **following, target_weights=torch.ones(tokens) if weighted else None)


def batch_with(batch: Batch, **values: object) -> Batch:
    """The batch with other fields."""
    from dataclasses import replace

    return replace(batch, **values)  # type: ignore[arg-type]  # names and types are those of Batch


def _tensors(batch: Batch) -> list[Tensor]:
    from dataclasses import fields

    values = (getattr(batch, field.name) for field in fields(batch))
    return [value for value in values if isinstance(value, Tensor)]
