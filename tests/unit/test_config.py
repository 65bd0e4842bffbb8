"""Configs: what is accepted, in which order, and what a user reads when something is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from genrec.config import DeepSpeedConfig, LeaveOneOutSplit, config_from_dict, load_config
from genrec.errors import ConfigError
from genrec.overrides import apply_overrides


def smallest() -> dict[str, Any]:
    """What cannot be left out."""
    return {
        "name": "small",
        "data": {"source": {"name": "synthetic"}, "prepared": "prepared/small"},
        "model": {"name": "sasrec"},
        "loss": {"name": "full-softmax"},
        "train": {"max_epochs": 1},
    }


def test_a_config_of_before_log_windows_moved_is_read() -> None:
    saved = smallest() | {"train": {"max_epochs": 1, "log_windows": True}, "tracking": {"wandb_group": "g"}}
    config = config_from_dict(saved)
    assert config.tracking.log_windows
    assert config.tracking.wandb_group == "g"
    assert config_from_dict(config.model_dump(mode="json")) == config
    assert saved["train"] == {"max_epochs": 1, "log_windows": True}  # what was given stays as it was
    saved["tracking"] = config.tracking.model_dump()
    with pytest.raises(ConfigError, match=r"train.log_windows is tracking.log_windows now; set that one alone"):
        config_from_dict(saved)
    with pytest.raises(ConfigError, match=r"tracking"):
        config_from_dict(saved | {"tracking": 1})


def refusal(*overrides: str) -> str:
    """The message that refuses the smallest config with these overrides."""
    with pytest.raises(ConfigError) as caught:
        config_from_dict(apply_overrides(smallest(), overrides), "small.yaml")
    return str(caught.value)


def test_defaults_fill_what_the_file_leaves_out() -> None:
    config = config_from_dict(smallest())
    assert config.engine == DeepSpeedConfig()
    assert config.data.split == LeaveOneOutSplit()
    assert config.evaluation.ks == (1, 5, 10, 50)


def test_precedence_is_defaults_then_file_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(smallest() | {"optimizer": {"lr": 0.5, "beta1": 0.5}}))
    config = load_config(path, ["optimizer.lr=0.25", "optimizer.lr=0.125"])
    assert (config.optimizer.lr, config.optimizer.beta1, config.optimizer.beta2) == (0.125, 0.5, 0.98)


def test_resolved_config_loads_again_as_itself(tmp_path: Path) -> None:
    config = config_from_dict(smallest())
    path = tmp_path / "resolved.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(path) == config


def test_config_is_frozen() -> None:
    config = config_from_dict(smallest())
    with pytest.raises(ValidationError, match="frozen"):
        config.optimizer.lr = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        config.name = "other"


def test_a_section_with_a_usual_kind_needs_no_name() -> None:
    config = config_from_dict(smallest() | {"engine": {"zero_stage": 3}})
    assert config.engine == DeepSpeedConfig(zero_stage=3)


def test_numbers_in_scientific_notation_are_numbers() -> None:
    # YAML 1.1 reads 1e-3, without a dot, as text.
    assert config_from_dict(apply_overrides(smallest(), ["optimizer.lr=1e-3"])).optimizer.lr == 0.001


@pytest.mark.parametrize(
    ("overrides", "path", "way_out"),
    [
        # unknown keys: the nearest names
        (["optimzer.lr=1"], "optimzer is not a known setting", "did you mean optimizer?"),
        (["model.dmi=64"], "model.dmi is not a known setting", "did you mean dim?"),
        (["engine.zero_stge=2"], "engine.zero_stge is not a known setting", "did you mean zero_stage?"),
        (
            ["data.source={name: parquet, path: x, columns: {usr: a}}"],
            "data.source.columns.usr is not a known setting",
            "did you mean user?",
        ),
        # a setting that this model would ignore
        (
            ["evaluation.decoding=exhaustive"],
            "evaluation.decoding: exhaustive is for models that write codes",
            "leave it out, or use code-decoder or tiger",
        ),
        # a setting of another kind: the settings that this kind has
        (
            ["loss.num_negatives=9"],
            "loss.num_negatives is not a known",
            "one of action_weights, label_smoothing, learn_temperature, max_logits_bytes, name, temperature, ",
        ),
        # kinds
        (["model.name=sasrek"], "model.name = 'sasrek' is not known", "did you mean sasrec or esasrec?"),
        (
            ["model.name=zzz"],
            "model.name = 'zzz' is not known",
            "one of code-decoder, decoder, esasrec, hstu, sasrec, tiger.",
        ),
        (["model={dim: 3}"], "model.name is required", "one of code-decoder, decoder, esasrec, hstu, sasrec, tiger."),
        (["engine.name=fsdp"], "engine.name = 'fsdp' is not known", "one of auto, deepspeed, torch."),
        # required
        (["data.source.name=sequence-text"], "data.source.path is required and missing", "add data.source.path=..."),
        (["data.split.name=global-time"], "data.split.test_from is required and missing", "add data.split.test_from="),
        # types and ranges
        (["model.dim=wide"], "model.dim = 'wide' is refused: input should be a valid integer", "change model.dim."),
        (["model.dim=1.5"], "model.dim = 1.5 is refused", "change model.dim."),
        (
            ["optimizer.lr=.nan"],
            "optimizer.lr = nan is refused: input should be a finite number",
            "change optimizer.lr",
        ),
        (["optimizer.lr=-1"], "optimizer.lr = -1 is refused: input should be greater than 0", "change optimizer.lr."),
        (["model=3"], "model = 3 is refused: it is a section", "give it `setting: value` entries"),
        (["evaluation.ks=3"], "evaluation.ks = 3 is refused: input should be a list", "change evaluation.ks."),
        (["train.patience=true"], "train: patience must not be true", "give a number"),
        (["seed=true"], "seed must not be true", "give a number"),
        (["name='a b'"], "name = 'a b' is refused", "change name."),
        (["engine.precision=fp16"], "engine.precision = 'fp16' is refused", "'fp32' or 'bf16'"),
        (["engine.zero_stage=5"], "engine.zero_stage = 5 is refused", "less than or equal to 3"),
        # rules between settings
        (["cluster.workers=3"], "batch.micro_batches_per_step (2) must be a multiple of cluster.workers (3)", "use 3"),
        (["cluster.workers=0"], "cluster.workers: 0 must be a number from 1", "use 2, or [1, 2]"),
        (
            ["batch.tokens_per_step=3"],
            "batch: tokens_per_step (3) must be at least 2 for each of the 2",
            "raise it to 4",
        ),
        (["model.dim=65"], "model: dim (65) must be divisible by num_heads (2)", "use dim 66 or num_heads 1"),
        (
            ["cluster.workers=2", "cluster.gpus_per_worker=0.5"],
            "cluster: gpus_per_worker (0.5) must be 0 or 1 with workers (2)",
            "runs of one worker each can",
        ),
        (
            ["engine.zero_stage=0", "engine.offload_optimizer=true"],
            "engine: offload_optimizer needs zero_stage 1, 2 or 3, not 0",
            "raise zero_stage",
        ),
        (["train.max_epochs=null"], "train: one of max_epochs and max_steps must be set", "add train.max_epochs=10"),
        (
            ["evaluation.validation=background", "engine={zero_stage: 0, precision: bf16}"],
            "evaluation.validation (background) cannot read the checkpoints of engine.zero_stage 0",
            "use zero_stage 1, 2 or 3",
        ),
        (["evaluation.metric=ndcg@7"], "evaluation: metric 'ndcg@7' needs its cut-off in ks [1, 5, 10, 50]", "add it"),
        (
            ["evaluation.max_scores_bytes=2000000"],
            "evaluation: max_scores_bytes (2000000) must be at least 8 * users_per_batch^2 (2097152)",
            "lower users_per_batch (512)",
        ),
        (["evaluation.ks=[10,10]"], "evaluation: ks [10, 10] must be different positive integers", "remove the odd"),
        (
            ["data.split={name: global-time, validation_from: 5, test_from: 3}"],
            "data.split: validation_from (5) must be before test_from (3)",
            "swap them",
        ),
        (["data.source.num_users=100000"], "data.source: num_events (200000) / num_users (100000)", "use 4000 users"),
    ],
)
def test_refusal_names_the_path_the_value_and_a_way_out(overrides: list[str], path: str, way_out: str) -> None:
    head, line = refusal(*overrides).split("\n", 1)
    assert head.startswith("small.yaml has ")
    assert path in line
    assert way_out in line
    assert "pydantic" not in line


@pytest.mark.parametrize(("parts", "workers", "accumulation"), [(1, 1, 1), (8, 1, 8), (8, 2, 4), (8, 8, 1), (6, 3, 2)])
def test_accumulation_is_micro_batches_by_worker(parts: int, workers: int, accumulation: int) -> None:
    overrides = [f"batch.micro_batches_per_step={parts}", f"cluster.workers={workers}"]
    assert config_from_dict(apply_overrides(smallest(), overrides)).accumulation(workers) == accumulation


@pytest.mark.parametrize(("parts", "workers"), [(2, 3), (2, 4), (8, 3), (9, 6)])
def test_the_way_out_of_indivisible_workers_works(parts: int, workers: int) -> None:
    overrides = [f"batch.micro_batches_per_step={parts}", f"cluster.workers={workers}"]
    advised = int(refusal(*overrides).partition("use ")[2].split()[0])
    assert advised >= parts
    fixed = [f"batch.micro_batches_per_step={advised}", f"cluster.workers={workers}"]
    assert config_from_dict(apply_overrides(smallest(), fixed)).accumulation(workers) == advised // workers


@pytest.mark.parametrize(
    ("parts", "workers", "what"),
    [
        (4, [1, 3], "[1, 3], and 3 does not divide it"),
        (6, [2, 4], "[2, 4], and 4 does not divide it"),
        (2, [2, 4], "[2, 4], and 3, 4 do not divide it"),
    ],
)
def test_every_size_of_a_range_must_divide_and_the_way_out_works(parts: int, workers: list[int], what: str) -> None:
    message = refusal(f"batch.micro_batches_per_step={parts}", f"cluster.workers={workers}")
    assert f"batch.micro_batches_per_step ({parts}) must be a multiple of every number of workers" in message
    assert what in message
    advised = int(message.partition("use ")[2].split()[0])
    assert advised > parts
    fixed = [f"batch.micro_batches_per_step={advised}", f"cluster.workers={workers}"]
    cluster = config_from_dict(apply_overrides(smallest(), fixed)).cluster
    assert [cluster.min_workers, cluster.max_workers] == workers


def test_a_range_that_no_number_of_micro_batches_fits() -> None:
    message = refusal("cluster.workers=[1, 40]")
    assert "and 3, 4, 5, 6, 7, 8, 9, 10 and 30 more do not divide it" in message
    assert "no number up to 65,536 would do; choose a smaller range" in message


@pytest.mark.parametrize("workers", ["[2, 1]", "[1]", "[1, 2, 3]", "[0, 2]", "two", "1.5", "[1, x]", "{min: 1}"])
def test_what_is_no_number_of_workers(workers: str) -> None:
    assert "must be a number from 1 to 65,536, or [smallest, largest]" in refusal(f"cluster.workers={workers}")


def test_fractions_that_ray_counts_wrong_are_refused_in_a_range() -> None:
    config_from_dict(apply_overrides(smallest(), ["cluster.workers=2", "cluster.cpus_per_worker=0.3"]))
    message = refusal("cluster.workers=[1, 2]", "cluster.cpus_per_worker=0.3")
    assert "cpus_per_worker (0.3) must be a multiple of 0.0625" in message
    assert "use 0.3125" in message
    config_from_dict(apply_overrides(smallest(), ["cluster.workers=[1, 2]", "cluster.cpus_per_worker=0.3125"]))


@pytest.mark.parametrize(("dim", "heads"), [(65, 2), (50, 8), (3, 4)])
def test_the_way_out_of_indivisible_heads_works(dim: int, heads: int) -> None:
    advised = refusal(f"model.dim={dim}", f"model.num_heads={heads}").partition("use dim ")[2].split()[0]
    config_from_dict(apply_overrides(smallest(), [f"model.dim={advised}", f"model.num_heads={heads}"]))


def test_every_problem_is_listed() -> None:
    message = refusal("model.dmi=1", "cluster.workers=0", "optimizer.lr=-1")
    assert message.startswith("small.yaml has 3 problems:")
    assert len(message.splitlines()) == 4


def test_keys_that_are_no_text_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.1 = 1 is refused"):
        config_from_dict(smallest() | {"model": {1: 2, "name": "sasrec"}})


def test_a_missing_file_is_named_with_the_configs_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^Config file nope\.yaml does not exist\.$"):
        load_config("nope.yaml")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text("name: x")
    with pytest.raises(ConfigError, match=r"nope\.yaml does not exist; configs here: configs/quickstart\.yaml"):
        load_config("nope.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "is not valid YAML"),
        (b"name: 2026-13-01", "is not valid YAML: month must be in 1"),
        (b"a: " + b"[" * 5_000, "is not valid YAML"),
        (b"\xff\xfe\x00", "cannot be read|is not valid YAML"),
        (b"", "must hold `section:` entries, but it holds NoneType"),
        (b"- 1\n- 2", "must hold `section:` entries, but it holds list"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
