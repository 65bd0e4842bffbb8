"""Row-wise Adagrad: the formula, whole and in parts that begin inside of rows, for tables only, and resumed."""

from pathlib import Path

import pytest
import torch
from engine_runs import check_goes_on_bit_for_bit, engine_of
from torch import Tensor

from genrec.config import AdamWConfig, ExperimentConfig
from genrec.errors import ConfigError, RunError
from genrec.training import flat_parts, row_adagrad
from genrec.training.optim import MixedOptimizer, set_learning_rate
from genrec.training.row_adagrad import rowwise_adagrad_step

ROWS, DIM, LR, EPS = 7, 5, 0.1, 1e-8
GROUP = {"shapes": [(ROWS, DIM)], "lr": LR, "eps": EPS}


def literal(table: Tensor, gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The formula, one row after another, in fp64; the table and its accumulators."""
    table, accumulators = table.double().clone(), torch.zeros(ROWS, dtype=torch.float64)
    for gradient in gradients:
        for row in range(ROWS):
            accumulators[row] += sum(float(value) ** 2 for value in gradient[row]) / DIM
            table[row] -= LR * gradient[row].double() / (accumulators[row].sqrt() + EPS)
    return table, accumulators


def gradients_of(steps: int) -> list[Tensor]:
    torch.manual_seed(1)
    gradients = [torch.randn(ROWS, DIM) * 10.0**step for step in range(-steps // 2, steps // 2)]
    for gradient in gradients:
        gradient[0] = 0.0  # the padding row never has a gradient
    gradients[0][3] = 0.0
    return gradients


def test_is_the_formula() -> None:
    torch.manual_seed(0)
    table, accumulators = torch.randn(ROWS, DIM), torch.zeros(ROWS)
    expected, expected_accumulators = literal(table, gradients_of(6))
    first_row = table[0].clone()
    for gradient in gradients_of(6):
        table.grad = gradient
        rowwise_adagrad_step(table, accumulators, GROUP)
    torch.testing.assert_close(table.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(accumulators.double(), expected_accumulators, rtol=1e-6, atol=0)
    assert torch.equal(table[0], first_row)


class Together:
    """Stands in for `torch.distributed` where workers are called in turn: each sum is what all of them hold."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.rank = 0
        self.squares: list[Tensor] = []
        self.total: Tensor | None = None

    def is_initialized(self) -> bool:
        return True

    def get_world_size(self) -> int:
        return self.workers

    def get_rank(self) -> int:
        return self.rank

    def all_reduce(self, values: Tensor) -> None:
        if self.total is None:
            self.squares.append(values.clone())
        else:
            values.copy_(self.total)


@pytest.mark.parametrize("workers", [1, 2, 3, 9])
def test_parts_that_begin_inside_of_rows_are_the_whole(monkeypatch, workers: int) -> None:
    together = Together(workers)
    monkeypatch.setattr(row_adagrad, "dist", together)
    monkeypatch.setattr(flat_parts, "dist", together)
    numel = -(-ROWS * DIM // workers) + 1  # some padding; with 9 workers the last ones hold nothing else
    torch.manual_seed(0)
    table = torch.randn(ROWS, DIM)
    whole = torch.cat([table.flatten(), torch.zeros(workers * numel - ROWS * DIM)])
    accumulators = [torch.zeros(ROWS) for _ in range(workers)]
    for gradient in gradients_of(4):
        flat = torch.cat([gradient.flatten(), torch.zeros(workers * numel - ROWS * DIM)])
        before = whole.clone()
        for sums_are_known in (False, True):
            together.total = sum(together.squares) if sums_are_known else None
            for together.rank in range(workers):
                part = (whole if sums_are_known else before)[together.rank * numel :][:numel]
                part.grad = flat[together.rank * numel :][:numel]
                known = accumulators[together.rank] if sums_are_known else torch.zeros(ROWS)
                rowwise_adagrad_step(part, known, GROUP)
        together.squares.clear()
    expected, expected_accumulators = literal(table, gradients_of(4))
    torch.testing.assert_close(whole[: ROWS * DIM].view(ROWS, DIM).double(), expected, rtol=1e-6, atol=1e-6)
    assert not whole[ROWS * DIM :].any()
    for found in accumulators:
        torch.testing.assert_close(found.double(), expected_accumulators, rtol=1e-6, atol=0)


@pytest.fixture
def prepared(tmp_path: Path, write_prepared) -> Path:
    return write_prepared(tmp_path / "set", [[1, 2, 3, 4]])


@pytest.fixture
def config(prepared: Path, make_config) -> ExperimentConfig:
    return make_config(
        prepared,
        "engine={name: torch}",
        "model={name: sasrec, dim: 6, num_layers: 1, num_heads: 1, dropout: 0.0}",
        "inputs.time_features=[gap]",
        "optimizer={lr: 0.01, weight_decay: 0.1, table: {name: rowwise-adagrad, lr: 0.05}}",
    )


def test_tables_are_the_items_and_what_inputs_look_up(config: ExperimentConfig) -> None:
    optimizer = engine_of(config, 0).optimizer
    assert isinstance(optimizer, MixedOptimizer)
    tables = {"item_table.weight": 10, "input.features.tables.gap.weight": 40}
    assert {name: len(value) for name, value in optimizer.accumulators.items()} == tables
    (rest,) = (group for group in optimizer.param_groups if group["kind"] == "adamw")
    assert "input.positions" in rest["names"]
    assert not tables.keys() & set(rest["names"])
    set_learning_rate(optimizer, 0.005)  # half of the peak
    rates = {group["kind"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"adamw": 0.005, "rowwise-adagrad": pytest.approx(0.025)}


@pytest.mark.parametrize("way", ["load", "load_universal"])
def test_goes_on_bit_for_bit(config: ExperimentConfig, tmp_path: Path, way: str) -> None:
    check_goes_on_bit_for_bit(config, tmp_path, way)


def test_says_what_a_checkpoint_lacks(config: ExperimentConfig, tmp_path: Path) -> None:
    plain = config.model_copy(update={"optimizer": AdamWConfig()})
    engine_of(plain, 0).save(tmp_path)
    with pytest.raises(RunError, match=r"no 10 accumulators of the table item_table.weight.*--fresh"):
        engine_of(config, 0).optimizer.load(tmp_path)


def test_offload_is_refused(make_config, prepared: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimizer.table rowwise-adagrad; set engine.offload_optimizer: false"):
        make_config(prepared, "optimizer.table.name=rowwise-adagrad", "engine={zero_stage: 2, offload_optimizer: true}")
