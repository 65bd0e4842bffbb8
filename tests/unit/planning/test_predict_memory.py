"""Memory of a worker: closed forms of its state, and what more workers and higher stages do to it."""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genrec.config import ExperimentConfig
from genrec.models.build import build_model
from genrec.planning.activations import (
    Activations,
    Linear,
    Load,
    load_of,
    measure_activations,
    model_as_trained,
    saved_bytes,
)
from genrec.planning.memory import MemoryParts, predict_memory
from genrec.planning.model_size import ModelSize, model_size
from genrec.planning.step_time import sent_bytes
from genrec.planning.workload import Catalogue

CATALOGUE = Catalogue(num_items=1_000, num_train_items=1_000)
LOAD = Load(tokens=64, slots=64, pairs=2_048)
NOTHING = Activations(Linear(0, 0, 0), Linear(0, 0, 0), Linear(0, 0, 0), 1)


@pytest.fixture
def config(tmp_path: Path, make_config: Callable[..., ExperimentConfig]) -> Callable[..., ExperimentConfig]:
    return lambda *overrides: make_config(tmp_path / "nowhere", "batch.micro_batches_per_step=64", *overrides)


def engine(stage: int | None, precision: str = "fp32") -> str:
    name = "name: torch" if stage is None else f"zero_stage: {stage}"
    return f"engine={{{name}, precision: {precision}}}"


def predicted(config: ExperimentConfig, workers: int, activations: Activations = NOTHING) -> MemoryParts:
    return predict_memory(config, model_size(config, CATALOGUE), activations, LOAD, items=1_000, workers=workers)


def test_sizes_are_those_of_the_real_model(config: Callable[..., ExperimentConfig]) -> None:
    size = model_size(config(), CATALOGUE)
    model = build_model(config(), 1_000)
    assert size.total == sum(weight.numel() for weight in model.parameters())
    assert size.table == 1_001 * 8
    assert size.table_moments + size.other_moments == 2 * size.total
    assert size.whole == size.other  # all of them are small


def test_the_start_of_a_large_model_on_many_gpus_is_its_fullest_moment(
    config: Callable[..., ExperimentConfig],
) -> None:
    """Every GPU holds all weights in fp32 before they are shared out."""
    size = replace(model_size(config(), CATALOGUE), table=10**9, other=9 * 10**9, whole=0)
    size = replace(size, table_moments=2 * size.table, other_moments=2 * size.other)
    on_gpu = config("cluster.gpus_per_worker=1", engine(3, "bf16"), "loss={name: sampled-softmax}")
    parts = predict_memory(on_gpu, size, NOTHING, LOAD, items=1_000, workers=64)
    assert (parts.moment, parts.total) == ("start", 4e10)
    fewer = predict_memory(on_gpu, size, NOTHING, LOAD, items=1_000, workers=2)
    assert fewer.moment != "start" and fewer.total > 4e10
    on_cpu = predict_memory(config(engine(3, "bf16")), size, NOTHING, LOAD, items=1_000, workers=64)
    assert on_cpu.moment != "start"


def test_muon_and_adagrad_keep_less(config: Callable[..., ExperimentConfig]) -> None:
    plain = model_size(config(), CATALOGUE)
    mixed = model_size(config("optimizer={name: muon, table: {name: rowwise-adagrad}}"), CATALOGUE)
    assert mixed.table_moments == 1_001
    matrices = 6 * 8 * 8  # query, key, value, output, and two of the feed-forward part
    assert mixed.other_moments == plain.other_moments - matrices


@pytest.mark.parametrize(
    ("stage", "workers", "optimizer"),
    [(None, 4, 8), (0, 4, 8), (1, 1, 12), (1, 4, 3), (2, 4, 3), (3, 4, 3)],
)
def test_optimizer_state_is_divided(
    config: Callable[..., ExperimentConfig], stage: int | None, workers: int, optimizer: float
) -> None:
    one = config(engine(stage))
    parts = predicted(one, workers)
    assert parts.optimizer == optimizer * model_size(one, CATALOGUE).other


def test_a_higher_stage_never_needs_more_optimizer_memory(config: Callable[..., ExperimentConfig]) -> None:
    for workers in (2, 8, 32):
        stages = [predicted(config(engine(stage)), workers).optimizer for stage in range(4)]
        assert stages == sorted(stages, reverse=True)


def test_more_workers_never_need_more_state(config: Callable[..., ExperimentConfig]) -> None:
    for stage in range(4):
        totals = [predicted(config(engine(stage)), workers).total for workers in (2, 4, 8, 16)]
        assert totals == sorted(totals, reverse=True)


def test_stage_3_keeps_layers_gathered_from_the_forward_to_the_backward_pass(
    config: Callable[..., ExperimentConfig],
) -> None:
    one = config(engine(3))
    size = replace(model_size(one, CATALOGUE), whole=0)

    def weights(size: ModelSize, workers: int) -> float:
        return predict_memory(one, size, NOTHING, LOAD, items=1_000, workers=workers).weights

    assert weights(size, 4) == 4 * size.other / 4 + 4 * size.other
    assert weights(size, 1) == 4 * size.other  # nothing is gathered
    huge = replace(size, other=3_000_000_000)
    assert weights(huge, 4) == 4 * huge.other / 4 + 4e9


def test_average_of_weights_counts(config: Callable[..., ExperimentConfig]) -> None:
    size = model_size(config(), CATALOGUE)
    plain, averaged = (predicted(config(engine(2), *more), 2) for more in ((), ("optimizer.ema_decay=0.9",)))
    assert averaged.optimizer - plain.optimizer == 4 * size.other
    assert averaged.item_table - plain.item_table == 4 * size.table


@pytest.mark.parametrize("recompute", ["none", "block"])
def test_activations_of_any_size_follow_from_small_ones(
    config: Callable[..., ExperimentConfig], recompute: str
) -> None:
    """What autograd keeps of a larger model and batch than those that were looked at."""
    model = f"model={{name: decoder, dim: 16, num_layers: 5, num_heads: 2, recompute: {recompute}}}"
    one = config("sequence.max_length=100", "batch.tokens_per_step=65536", model)
    found = measure_activations(one)
    lengths = [90] * 3 + [40] * 5
    real = saved_bytes(one, model_as_trained(one, 500), 500, lengths)
    expected = found.kept(load_of(lengths), 500) - found.inside.at(load_of(lengths))
    # Equal lengths but two: padding is a few slots, and borders and bookkeeping a few bytes.
    assert expected == pytest.approx(real, rel=0.03)
    if recompute == "block":
        assert found.inside.per_pair > found.layer.per_pair == 0


@pytest.mark.parametrize("name", ["sasrec", "esasrec", "hstu", "decoder"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_pass_that_computes_no_products_keeps_the_same_bytes(
    config: Callable[..., ExperimentConfig], monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    model = f"model={{name: {name}, dim: 16, num_layers: 2, num_heads: 2}}"
    one = config("sequence.max_length=32", model, engine(None, precision))

    def kept() -> float:
        return saved_bytes(one, model_as_trained(one, 50), 50, [20, 7, 3])

    by_shapes = kept()
    monkeypatch.setattr("genrec.planning.activations._ShapesOnly", nullcontext)
    assert by_shapes == kept() > 0


def test_counting_keeps_nothing(config: Callable[..., ExperimentConfig]) -> None:
    one = config("sequence.max_length=32")

    def live_tensors() -> int:
        gc.collect()
        return sum(issubclass(type(value), torch.Tensor) for value in gc.get_objects())

    measure_activations(one)  # what is made once
    before = live_tensors()
    measure_activations(one)
    assert live_tensors() == before


def test_gpus_keep_no_pairs_of_softmax_attention(config: Callable[..., ExperimentConfig]) -> None:
    long = ("sequence.max_length=64", "batch.tokens_per_step=65536")
    assert measure_activations(config(*long)).layer.per_pair == 4.0  # one head of fp32 weights, without dropout
    on_gpu = measure_activations(config(*long), on_gpu=True)
    assert on_gpu.layer.per_pair == 0


def test_measuring_leaves_the_generator_alone(config: Callable[..., ExperimentConfig]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    measure_activations(config("model.dropout=0.5"))
    assert torch.equal(before, torch.get_rng_state())


def test_bytes_that_a_worker_sends(config: Callable[..., ExperimentConfig]) -> None:
    size = replace(model_size(config(), CATALOGUE), whole=0)
    n = size.total
    accumulation = 16
    assert sent_bytes(config(engine(None)), size, 1) == 0
    assert sent_bytes(config(engine(None)), size, 4) == 2 * 0.75 * 4 * n
    assert sent_bytes(config(engine(1)), size, 4) == 3 * 0.75 * 4 * n
    assert sent_bytes(config(engine(2)), size, 4) == (2 * accumulation + 1) * 0.75 * 4 * n
    gathered = 2 * size.other + 4 * size.table
    assert sent_bytes(config(engine(3)), size, 4) == accumulation * 0.75 * 4 * (gathered + n)
    assert sent_bytes(config(engine(1, "bf16")), size, 4) == 3 * 0.75 * 2 * n


def test_offload_moves_state_to_the_host(config: Callable[..., ExperimentConfig]) -> None:
    offload = "engine={zero_stage: 2, offload_optimizer: true, precision: bf16}"
    one = config("cluster.gpus_per_worker=1", offload)
    size: ModelSize = model_size(one, CATALOGUE)
    parts = predicted(one, 4)
    assert parts.optimizer == 0
    assert parts.host == 4 * 4 * size.total / 4  # master weights, two moments, gradients
