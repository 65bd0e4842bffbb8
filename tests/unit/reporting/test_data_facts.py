"""The facts of a prepared set are what a hand count gives; a sample is scaled, and plans are those of the training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.config import ExperimentConfig, GlobalTimeSplit
from genrec.data.manifest import load_manifest
from genrec.data.packing import window_cost
from genrec.data.plan import make_plan
from genrec.data.stream import local_tables
from genrec.errors import DataError
from genrec.reporting import data_facts, data_plan
from genrec.reporting.data_examples import example_users
from genrec.reporting.data_facts import DAY_S, Action, ItemType, LengthBucket
from genrec.reporting.data_plan import plan_facts

SEQUENCES = [[1, 2, 1, 3], [1, 2], [1, 2, 3, 1, 4, 1, 2, 1, 5, 1]]
"""Training sees the first 2, 2 and 8 events, so items 1 to 5 have 6, 4, 1, 1 and 0 training events."""
TIMES = [[0, 1, DAY_S, 4 * DAY_S], [5, 6], [2 * DAY_S] * 9 + [4 * DAY_S + 7]]


@pytest.fixture
def prepared(tmp_path: Path, write_prepared: Callable[..., Path]) -> Path:
    return write_prepared(tmp_path / "tiny", SEQUENCES, times=TIMES, rows_per_group=1)


def test_lengths(prepared: Path) -> None:
    lengths = data_facts.count_lengths(prepared, load_manifest(prepared))
    assert lengths.mean == pytest.approx(16 / 3)
    assert (lengths.median, lengths.p90, lengths.p99, lengths.longest) == (4, 10, 10, 10)
    assert lengths.buckets == (
        LengthBucket(2, 1, 2),
        LengthBucket(4, 1, 4),
        LengthBucket(8, 0, 0),
        LengthBucket(16, 1, 10),
    )


def test_a_quantile_is_the_smallest_length_that_suffices(tmp_path: Path, write_prepared: Callable[..., Path]) -> None:
    folder = write_prepared(tmp_path / "ten", [[1] * length for length in range(1, 11)])
    lengths = data_facts.count_lengths(folder, load_manifest(folder))
    assert (lengths.median, lengths.p90, lengths.p99) == (5, 9, 10)


def test_popularity(prepared: Path) -> None:
    popularity, types = data_facts.count_items(prepared)
    assert (popularity.num_items, popularity.num_never_trained) == (5, 1)
    assert popularity.top_1_percent_share == popularity.top_10_percent_share == pytest.approx(6 / 12)
    assert popularity.gini == pytest.approx(2 * (2 * 1 + 3 * 1 + 4 * 4 + 5 * 6) / (5 * 12) - 6 / 5)
    assert popularity.ranks == (1, 2, 3, 4)
    assert popularity.shares == pytest.approx((6 / 12, 4 / 12, 1 / 12, 1 / 12))
    assert popularity.cumulative == pytest.approx((6 / 12, 10 / 12, 11 / 12, 1))
    assert types == ()


def test_the_gini_coefficient_is_the_mean_difference_of_two_items() -> None:
    counts = np.random.default_rng(3).integers(0, 50, size=200)
    literal = np.abs(counts[:, None] - counts[None, :]).mean() / (2 * counts.mean())
    assert data_facts.popularity_of(counts).gini == pytest.approx(literal)
    assert data_facts.popularity_of(np.full(7, 3)).gini == pytest.approx(0)


def test_a_long_popularity_curve_keeps_its_ends() -> None:
    popularity = data_facts.popularity_of(np.arange(100_000))
    assert len(popularity.ranks) <= data_facts.MAX_CURVE_POINTS
    assert (popularity.ranks[0], popularity.ranks[-1]) == (1, 99_999)
    assert popularity.cumulative[-1] == pytest.approx(1)
    total = 99_999 * 100_000 / 2
    assert popularity.top_1_percent_share == pytest.approx(sum(range(99_000, 100_000)) / total)


def test_nothing_to_train_on() -> None:
    popularity = data_facts.popularity_of(np.zeros(4, dtype=np.int64))
    assert (popularity.num_never_trained, popularity.gini, popularity.ranks) == (4, 0.0, ())


def test_item_types(prepared: Path) -> None:
    set_types(prepared, ["track", "episode", "track", None, "episode"])
    _, types = data_facts.count_items(prepared)
    assert sorted(types, key=lambda kind: kind.name) == [
        ItemType("", 1, 1),
        ItemType("episode", 2, 4),
        ItemType("track", 2, 7),
    ]


def set_types(folder: Path, types: list[str | None]) -> None:
    table = pq.read_table(folder / "items.parquet")
    place = table.schema.get_field_index("type")
    pq.write_table(table.set_column(place, "type", pa.array(types, pa.string())), folder / "items.parquet")


def test_events_over_time_and_actions(prepared: Path) -> None:
    sample, actions, periods = data_facts.count_events(prepared, load_manifest(prepared))
    assert sample.is_whole
    assert (sample.num_row_groups, sample.num_events) == (3, 16)
    assert actions == (Action("play", 16),)
    assert periods is not None
    assert (periods.unit, periods.first_s, periods.num_units) == ("day", 0, 5)
    assert periods.events_per_unit == (4, 1, 9, 0, 2)


def test_a_sample_is_scaled_to_the_whole(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_facts, "SAMPLE_EVENTS", 1)
    sample, _, periods = data_facts.count_events(prepared, load_manifest(prepared))
    assert not sample.is_whole
    assert (sample.num_row_groups, sample.of_row_groups) == (1, 3)
    assert sample.num_events in (4, 2, 10)
    assert periods is not None
    assert sum(periods.events_per_unit) == pytest.approx(16)


def test_many_days_share_a_period_and_the_last_one_is_shorter(
    tmp_path: Path, write_prepared: Callable[..., Path]
) -> None:
    last_day = 2 * data_facts.MAX_PERIODS
    times = [[0, DAY_S, last_day * DAY_S]]
    folder = write_prepared(tmp_path / "years", [[1, 2, 3]], times=times)
    _, _, periods = data_facts.count_events(folder, load_manifest(folder))
    assert periods is not None
    assert (periods.units_per_period, periods.num_units) == (3, last_day + 1)
    assert len(periods.events_per_unit) == 245
    assert periods.events_per_unit[0] == pytest.approx(2 / 3)
    assert periods.events_per_unit[-1] == pytest.approx(1)  # day 732 stands alone


def test_a_short_log_is_counted_by_the_hour_and_one_without_times_not_at_all(
    tmp_path: Path, write_prepared: Callable[..., Path]
) -> None:
    folder = write_prepared(tmp_path / "hours", [[1, 2, 3]], times=[[3_600, 3_601, 11_000]])
    _, _, periods = data_facts.count_events(folder, load_manifest(folder))
    assert periods is not None
    assert (periods.unit, periods.events_per_unit) == ("hour", (2, 0, 1))
    folder = write_prepared(tmp_path / "order", [[1, 2, 3]])
    assert data_facts.count_events(folder, load_manifest(folder))[2] is None


def test_examples_have_original_ids_and_roles(prepared: Path) -> None:
    set_types(prepared, ["track", None, None, None, "episode"])
    manifest = load_manifest(prepared)
    place = next(place for place in data_facts.row_groups_of(manifest) if place.num_events == 10)
    (user,) = example_users(prepared, manifest, place)
    assert (user.user, user.num_events) == (1002, 10)
    assert [event.item for event in user.events] == [30, 10, 40, 10, 20, 10, 50, 10]
    assert [event.position for event in user.events] == list(range(3, 11))
    assert [event.role for event in user.events] == ["train"] * 6 + ["validation", "test"]
    assert [event.is_predicted for event in user.events] == [False] * 6 + [True] * 2
    assert [event.item_type for event in user.events[-2:]] == ["episode", "track"]
    assert user.events[-1].time_s == 4 * DAY_S + 7
    assert user.events[-1].action == "play"


def test_examples_of_a_global_time_split(tmp_path: Path, write_prepared: Callable[..., Path]) -> None:
    split = GlobalTimeSplit(name="global-time", validation_from=25, test_from=45)
    times = [[10, 20, 30, 40, 50, 60], [30, 50]]
    folder = write_prepared(tmp_path / "time", [[1, 2, 3, 4, 5, 6], [1, 2]], times=times, split=split)
    manifest = load_manifest(folder)
    late, early = example_users(folder, manifest, data_facts.row_groups_of(manifest)[0])
    assert [event.role for event in early.events] == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    assert [event.position for event in early.events if event.is_predicted] == [3, 5]
    # The user has nothing before the validation period, so there is nothing to predict its first event from.
    assert [(event.role, event.is_predicted) for event in late.events] == [("validation", False), ("test", True)]


def test_examples_are_a_short_a_middling_and_a_long_user(tmp_path: Path, write_prepared: Callable[..., Path]) -> None:
    folder = write_prepared(tmp_path / "eleven", [[1] * length for length in range(1, 12)])
    manifest = load_manifest(folder)
    users = example_users(folder, manifest, data_facts.row_groups_of(manifest)[0])
    assert [user.num_events for user in users] == [2, 6, 10]


def test_an_item_that_is_not_in_the_table_is_named(prepared: Path) -> None:
    pq.write_table(pq.read_table(prepared / "items.parquet").slice(0, 2), prepared / "items.parquet")
    manifest = load_manifest(prepared)
    place = next(place for place in data_facts.row_groups_of(manifest) if place.num_events == 10)
    with pytest.raises(DataError, match=r"items\.parquet has no row for index 3"):
        example_users(prepared, manifest, place)


def test_an_item_table_that_is_cut_is_named(prepared: Path) -> None:
    path = prepared / "items.parquet"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"items\.parquet cannot be read"):
        data_facts.count_items(prepared)


def test_the_plan_by_hand(prepared: Path, make_config: Callable[..., ExperimentConfig]) -> None:
    plan = plan_facts(make_config(prepared, "batch.tokens_per_step=16", "batch.micro_batches_per_step=2"))
    # Windows of 1, 1 and 7 tokens: the long one alone, the short ones together.
    assert (plan.num_steps, plan.num_micro_batches, plan.num_windows, plan.num_tokens) == (1, 2, 3, 9)
    assert plan.fill == pytest.approx(9 / 16)
    assert plan.tokens_per_micro_batch == pytest.approx(4.5)
    assert plan.trained_share == 1
    long, short = 7 + 49 / 1024, 2 * (1 + 1 / 1024)
    assert plan.step_spread_max == plan.step_spread_median == pytest.approx((long - short) / long)
    assert plan.cost_max_to_mean == pytest.approx(2 * long / (long + short))
    assert (plan.padded_to_longest.slots_per_token, plan.padded_to_longest.cost) == pytest.approx((1, 1))
    assert plan.padded_to_max_length.slots_per_token == pytest.approx(3 * 8 / 9)
    assert plan.padded_to_max_length.cost == pytest.approx(3 * (8 + 64 / 1024) / (long + short))


def test_windows_that_leave_out_events(prepared: Path, make_config: Callable[..., ExperimentConfig]) -> None:
    settings = ("sequence.max_length=4", "batch.tokens_per_step=16", "batch.micro_batches_per_step=2")
    plan = plan_facts(make_config(prepared, *settings))
    assert (plan.num_windows, plan.num_tokens) == (3, 6)
    assert plan.trained_share == pytest.approx(6 / 9)
    assert plan.padded_to_max_length.slots_per_token == pytest.approx(2)


def micro_batches_of(config: ExperimentConfig) -> list[npt.NDArray[np.int32]]:
    """Window lengths of each micro-batch of the first epoch, as a worker gets them."""
    plan = make_plan(config)
    num_steps = plan.num_steps(1, None)
    tables = local_tables(plan, start_step=0, end_step=num_steps, rank=0, workers=1)
    return [np.array(row["lengths"], dtype=np.int32) for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize("window", ["last", "sliding", "stochastic"])
def test_the_micro_batches_are_those_of_the_training(
    window: str, tmp_path: Path, write_prepared: Callable[..., Path], make_config: Callable[..., ExperimentConfig]
) -> None:
    generator = np.random.default_rng(5)
    lengths_of_users = np.minimum(2 + generator.zipf(1.3, size=300), 60)
    sequences = [generator.integers(1, 20, size=length).tolist() for length in lengths_of_users]
    folder = write_prepared(tmp_path / "zipf", sequences, rows_per_group=10)
    settings = ("sequence.max_length=16", "batch.tokens_per_step=64", "batch.micro_batches_per_step=2")
    config = make_config(folder, *settings, "batch.chunk_tokens=1000", f"sequence.window={window}")
    facts = plan_facts(config)
    trained = micro_batches_of(config)
    costs = [float(window_cost(lengths).sum()) for lengths in trained]
    slots = sum(int(lengths.max()) * len(lengths) for lengths in trained)
    num_windows = sum(len(lengths) for lengths in trained)
    by_step = np.array(costs).reshape(-1, 2)
    assert (facts.num_micro_batches, facts.num_windows) == (len(costs), num_windows)
    assert facts.cost_max_to_mean == pytest.approx(max(costs) / np.mean(costs))
    spread = 1 - by_step.min(axis=1) / by_step.max(axis=1)
    assert (facts.step_spread_median, facts.step_spread_max) == pytest.approx((np.median(spread), spread.max()))
    assert facts.padded_to_longest.slots_per_token == pytest.approx(slots / facts.num_tokens)


def test_a_part_of_many_chunks_is_packed(
    tmp_path: Path,
    write_prepared: Callable[..., Path],
    make_config: Callable[..., ExperimentConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = write_prepared(tmp_path / "many", [[1] * 11] * 600, rows_per_group=10)
    config = make_config(folder, "batch.tokens_per_step=16", "batch.chunk_tokens=512")
    whole = plan_facts(config)
    monkeypatch.setattr(data_plan, "MAX_PACKED_CHUNKS", 3)
    part = plan_facts(config)
    assert (whole.num_packed_chunks, part.num_packed_chunks) == (whole.num_chunks, 3)
    assert (part.num_steps, part.num_windows, part.fill) == (whole.num_steps, whole.num_windows, whole.fill)
    assert part.padded_to_max_length == whole.padded_to_max_length  # all windows are alike
