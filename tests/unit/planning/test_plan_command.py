"""`genrec plan`: its tables, its JSON, the described cluster, calibration, and its sentences."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from genrec.cli import app
from genrec.config import ExperimentConfig
from genrec.data.manifest import load_manifest
from genrec.errors import ConfigError, DataError
from genrec.planning.calibration import Calibration, fitted, read_calibration, save_calibration
from genrec.planning.command import calibration_of
from genrec.planning.fit import check_memory
from genrec.planning.flops import StepFlops
from genrec.planning.machine import Machine, read_cluster, this_machine
from genrec.planning.model_size import model_size
from genrec.planning.planner import Plan, make_plan
from genrec.planning.scaling import limit_sentence, scaling_of
from genrec.planning.step_time import StepTime, StepWork, predict_step
from genrec.planning.workload import read_windows

RATES = Calibration(flops_per_s=1e10, kept_bytes_per_s=1e9, overhead_s=0.001, source="a test")
MACHINE = Machine(
    name="two workers",
    nodes=1,
    workers_per_node=2,
    on_gpu=False,
    peak_flops=1e11,
    is_published=False,
    memory_bytes=8e9,
    host_memory_bytes=8e9,
    bytes_per_s=5e9,
    intra_node_bytes_per_s=1e9,
    inter_node_bytes_per_s=1e9,
)
CLUSTER = {
    "nodes": 16,
    "gpus_per_node": 8,
    "gpu": "H100",
    "cpu_cores_per_node": 96,
    "memory_bytes_per_node": 2e12,
    "intra_node_bytes_per_s": 3e11,
    "inter_node_bytes_per_s": 4e11,
}


@pytest.fixture
def config(
    tmp_path: Path, write_prepared: Callable[..., Path], make_config: Callable[..., ExperimentConfig]
) -> Callable[..., ExperimentConfig]:
    rng = np.random.default_rng(3)
    rows = [rng.integers(1, 40, size=size).tolist() for size in rng.integers(4, 40, size=120)]
    prepared = write_prepared(tmp_path / "set", rows, num_items=40)
    batch = ("batch.tokens_per_step=512", "batch.micro_batches_per_step=4", "cluster.workers=2")
    return lambda *overrides: make_config(prepared, *batch, *overrides)


def planned(config: ExperimentConfig, machine: Machine = MACHINE, **options: bool) -> Plan:
    return make_plan(config, read_windows(config, repeats=True), machine, RATES, **options)


def test_fastest_that_fits_is_picked(config: Callable[..., ExperimentConfig]) -> None:
    plan = planned(config())
    speeds = [one.events_per_s for one in plan.options]
    assert plan.pick is plan.options[0]
    assert all(one.fits for one in plan.options)
    assert speeds == sorted(speeds, reverse=True) or speeds[0] == pytest.approx(max(speeds), rel=0.01)
    assert {one.engine for one in plan.options} == {"torch", "ZeRO-0", "ZeRO-1", "ZeRO-2", "ZeRO-3"}
    assert {one.config.batch.micro_batches_per_step for one in plan.options} >= {2, 4, 8, 16, 32, 64}
    for one in plan.options:
        assert one.config.batch.tokens_per_step == 512  # what a step is stays the same


def test_what_does_not_fit_comes_last_and_says_why(config: Callable[..., ExperimentConfig]) -> None:
    totals = sorted(one.memory.total for one in planned(config()).options)
    between = (totals[0] + totals[-1]) / 2
    plan = planned(config(), replace(MACHINE, memory_bytes=between))
    fits = [one.fits for one in plan.options]
    assert fits == sorted(fits, reverse=True)
    assert {True, False} == set(fits)
    assert all(one.why_not.endswith("too large") for one in plan.options if not one.fits)
    nothing = planned(config(), replace(MACHINE, memory_bytes=1e6))
    assert nothing.pick is None


def test_offload_is_for_gpus(config: Callable[..., ExperimentConfig], tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({**CLUSTER, "nodes": 1}))
    one = config("batch.tokens_per_step=8192", "engine.precision=bf16")
    engines = {option.engine for option in planned(one, read_cluster(path, one)).options}
    assert {"ZeRO-1 offload", "ZeRO-2 offload", "ZeRO-3 offload"} <= engines
    muon = config("batch.tokens_per_step=8192", "engine.precision=bf16", "optimizer={name: muon}")
    engines = {option.engine for option in planned(muon, read_cluster(path, muon)).options}
    assert not any("offload" in name for name in engines)
    assert "ZeRO-3" in engines


@pytest.mark.parametrize(
    ("engine", "peak", "slowdown"),
    [
        ({}, 67e12, 1.0),
        ({"matmul_precision": "high"}, 494.5e12, 1.0),
        ({"precision": "bf16"}, 989e12, 989 / 67),
        ({"precision": "bf16", "matmul_precision": "high"}, 989e12, 2.0),
    ],
)
def test_the_loss_of_a_bf16_model_is_as_slow_as_fp32(
    config: Callable[..., ExperimentConfig], tmp_path: Path, engine: dict[str, str], peak: float, slowdown: float
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({**CLUSTER, "nodes": 1}))
    one = config(*(f"engine.{name}={value}" for name, value in engine.items()))
    machine = read_cluster(path, one)
    assert (machine.peak_flops, machine.loss_slowdown) == pytest.approx((peak, slowdown))
    size, flops = model_size(one, read_windows(one).catalogue), StepFlops(1e12, 0.0, 0.0, 0.0, 5e12)
    calibration = replace(RATES, flops_per_s=machine.peak_flops, kept_bytes_per_s=None)
    found = predict_step(one, size, StepWork(flops, 512.0, 0.0), machine=machine, calibration=calibration)
    assert found.compute == pytest.approx((1e12 + 5e12 * slowdown) / 8 / peak)


def test_decoders_may_recompute(config: Callable[..., ExperimentConfig]) -> None:
    plan = planned(config("model={name: decoder, dim: 32, num_layers: 3, num_heads: 2}"))
    by_kind = {
        again: next(
            one
            for one in plan.options
            if one.engine == "torch"
            and one.config.batch.micro_batches_per_step == 2
            and one.config.model.model_dump()["recompute"] == again
        )
        for again in ("none", "block")
    }
    assert by_kind["block"].memory.activations < by_kind["none"].memory.activations
    assert by_kind["block"].time.compute > by_kind["none"].time.compute


def test_described_cluster_scales_and_something_breaks(config: Callable[..., ExperimentConfig], tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(CLUSTER))
    one = config("batch.tokens_per_step=65536", "engine={precision: bf16, matmul_precision: high}")
    plan = planned(one, read_cluster(path, one))
    scaling = scaling_of(plan)
    assert scaling is not None
    assert [point.nodes for point in scaling.points] == [1, 2, 4, 8, 16]
    assert [point.workers for point in scaling.points] == [8, 16, 32, 64, 128]
    assert scaling.points[0].efficiency == 1
    efficiencies = [point.efficiency for point in scaling.points]
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert scaling.breaks_first.startswith("What breaks first is the ")
    assert "room for" in scaling.breaks_first
    fast = replace(plan.machine, intra_node_bytes_per_s=1e15, inter_node_bytes_per_s=1e15)
    slow = replace(plan.calibration, flops_per_s=1e6)
    calm = scaling_of(make_plan(one, read_windows(one, repeats=True), fast, slow))
    assert calm is not None
    assert calm.breaks_first.startswith("Nothing breaks up to ")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ({"compute": 0.2}, ""),
        ({"communication": 0.2}, ""),
        (
            {"data": 0.9},
            r"\(900\sms of 900\sms\) is reading data, which a worker waits for at 2,000,000 events a second",
        ),
        ({"optimizer": 0.3}, r"\(300\sms of 330\sms\) is the optimizer's update"),
        ({"overhead": 0.3}, r"\(300\sms of 330\sms\) is the fixed cost of micro-batches"),
    ],
)
def test_what_limits_one_node_is_said_before_what_breaks(seconds: dict[str, float], words: str) -> None:
    parts = dict.fromkeys(("compute", "communication", "optimizer", "overhead", "data"), 0.01)
    said = limit_sentence(StepTime(**{**parts, **seconds}, sent_bytes=0.0))
    assert bool(said) == bool(words)
    assert re.search(words, said)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"gpu": "H1000"}, r"gpu \(H1000\) is not in the table \(GB200, .*give peak_flops and gpu_memory_bytes"),
        ({"nods": 4}, r"nods is not a known setting; did you mean nodes"),
        ({"nodes": 0}, r"nodes = 0 is refused"),
        ({"gpu": "T4"}, r"gpu T4 has no bf16 units; set engine.precision=fp32, or peak_flops"),
    ],
)
def test_odd_cluster_files_get_a_sentence(
    config: Callable[..., ExperimentConfig], tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({**CLUSTER, **change}))
    with pytest.raises(ConfigError, match=sentence):
        read_cluster(path, config("engine.precision=bf16"))


def test_more_workers_than_windows_fit_is_refused(config: Callable[..., ExperimentConfig], tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(CLUSTER))
    with pytest.raises(
        ConfigError, match=r"tokens_per_step \(512\) must hold a window .* 128 workers; raise it to 1024"
    ):
        planned(config(), read_cluster(path, config()))


def test_unprepared_sets_say_the_command(tmp_path: Path, make_config: Callable[..., ExperimentConfig]) -> None:
    with pytest.raises(DataError, match="is not prepared; run `genrec prepare`"):
        read_windows(make_config(tmp_path / "nowhere"))


def test_a_calibrated_plan_repeats_what_was_measured(config: Callable[..., ExperimentConfig], tmp_path: Path) -> None:
    one = config()
    run = tmp_path / "runs" / "unit"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(one.model_dump(mode="json")))
    lines = [{"kind": "start", "workers": 2}]
    lines += [{"kind": "train", "step": step, "events_per_s": 4_321.0} for step in range(5)]
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    machine = this_machine(one, measure=False)
    rates = calibration_of(run, machine)
    plan = make_plan(one, read_windows(one), machine, rates)
    same = next(
        option
        for option in plan.options
        if option.engine == "ZeRO-2" and option.config.batch.micro_batches_per_step == 4
    )
    assert same.events_per_s == pytest.approx(4_321, rel=1e-6)
    save_calibration(tmp_path / "calibration.json", rates)
    assert read_calibration(tmp_path / "calibration.json") == rates
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is not a calibration .*--calibrate RUN"):
        read_calibration(tmp_path / "calibration.json")


def test_on_a_cpu_what_is_kept_and_copied_takes_time(config: Callable[..., ExperimentConfig]) -> None:
    one = config("engine.zero_stage=2")
    size = model_size(one, read_windows(one).catalogue)
    flops = StepFlops(2e9, 0.0, 0.0, 0.0, 0.0)

    def step(kept: float, machine: Machine = MACHINE, rates: Calibration = RATES, stage: int = 2) -> StepTime:
        work = StepWork(flops, 1_000.0, kept)
        return predict_step(config(f"engine.zero_stage={stage}"), size, work, machine=machine, calibration=rates)

    assert step(0.0).compute == pytest.approx(2e9 / 2 / 1e10)
    assert step(3e9).compute == pytest.approx(2e9 / 2 / 1e10 + 3e9 / 2 / 1e9)
    on_gpu = replace(RATES, kept_bytes_per_s=None)
    assert step(3e9, rates=on_gpu).compute == step(0.0).compute
    gpu = replace(MACHINE, on_gpu=True)
    assert step(0.0).optimizer - step(0.0, gpu).optimizer == pytest.approx(50 * size.total / 5e9)
    assert step(0.0, stage=0).optimizer == step(0.0, gpu, stage=0).optimizer


def test_a_step_faster_than_its_communication_scales_everything() -> None:
    found = fitted(RATES, step_s=0.5, predicted_s=2.0, compute_s=1.0, source="x")
    assert found.flops_per_s == RATES.flops_per_s * 4
    assert found.kept_bytes_per_s == 4e9
    assert found.overhead_s == RATES.overhead_s / 4


def test_command_prints_tables_or_json(config: Callable[..., ExperimentConfig], tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(config("model.dim=16").model_dump(mode="json")))
    shown = CliRunner().invoke(app, ["plan", str(file)], env={"COLUMNS": "100"})
    assert shown.exit_code == 0, shown.output
    for text in ("Options, fastest first", "Memory of a worker", "Time of a step", "Pick: ", "Use it with:"):
        assert text in shown.output
    assert "…" not in shown.output
    assert max(map(len, shown.output.splitlines())) <= 100
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({**CLUSTER, "nodes": 2}))
    command = ["plan", str(file), "batch.tokens_per_step=4096", "--cluster", str(path), "--json"]
    found = json.loads(CliRunner().invoke(app, command).output)
    assert found["schema_version"] == 1
    assert found["pick"] == found["options"][0]
    parts = found["pick"]["memory_bytes"]
    assert sum(value for name, value in parts.items() if name not in ("total", "host")) == pytest.approx(parts["total"])
    assert found["flops_per_step"]["total"] > 0
    assert [point["nodes"] for point in found["scaling"]["points"]] == [1, 2]
    both = CliRunner().invoke(app, ["plan", str(file), "--calibrate", "a", "--calibration", "b"])
    assert isinstance(both.exception, ConfigError)


def test_a_model_without_formulas_is_said_and_still_trains(config: Callable[..., ExperimentConfig]) -> None:
    added = config().model_copy(update={"model": SimpleNamespace(name="gru", dim=10**9)})
    with pytest.raises(ConfigError, match=r"model\.name = 'gru' cannot be planned"):
        make_plan(added, read_windows(config()), MACHINE)
    check_memory(added, load_manifest(added.data.prepared), "local")
