"""The synthetic log: reproducible, bounded in memory, a listening log in shape, and its best metrics are the best."""

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.config import SyntheticSource
from genrec.data import synthetic, synthetic_best, synthetic_users
from genrec.data.synthetic import events_table, write_log, write_shard
from genrec.data.synthetic_best import best_known, last_events, next_item_probability
from genrec.data.synthetic_users import ACTIONS, SKIP, UserBlock, UserSampler, num_blocks
from genrec.data.synthetic_world import (
    CONTINUE_AT_START,
    CONTINUE_INSIDE,
    FIRST_ITEM,
    ITEM_TYPES,
    LOG_START_S,
    REPEAT_AT_START,
    REPEAT_INSIDE,
    SEASON_WEEKS,
    SESSION_GAP_MIN_S,
    SESSION_START,
    TASTE_SWITCH,
    WEEK_S,
    World,
    build_world,
)
from genrec.errors import DataError


def _source(**fields: int) -> SyntheticSource:
    return SyntheticSource.model_validate({"name": "synthetic", **fields})


@pytest.fixture(scope="module")
def source() -> SyntheticSource:
    return _source()


@pytest.fixture(scope="module")
def world(source: SyntheticSource) -> World:
    return build_world(source)


@pytest.fixture(scope="module")
def block(source: SyntheticSource, world: World) -> UserBlock:
    assert num_blocks(source) == 1
    return UserSampler(source, world).draw(0)


def _held(block: UserBlock) -> npt.NDArray[np.bool_]:
    return np.arange(len(block.items))[:, None] < block.lengths


# --- files -------------------------------------------------------------------------------------------------------


def test_the_log_has_the_columns_of_a_log_and_about_the_events_asked_for(tmp_path: Path) -> None:
    source = _source(num_events=20_000)
    written: list[int] = []
    best = write_log(source, tmp_path, written.append)
    log = pq.read_table(tmp_path / "log")
    assert log.schema.names == ["user", "item", "time", "action", "value"]
    assert [str(t) for t in log.schema.types] == ["int64", "int64", "int64", "string", "float"]
    assert sum(written) == log.num_rows == pytest.approx(20_000, rel=0.05)
    assert set(log["action"].to_pylist()) == set(ACTIONS)
    assert log["user"].to_numpy().max() == source.users - 1 == 399
    assert best["users"] == 400
    items = pq.read_table(tmp_path / "items.parquet")
    assert items["item"].to_pylist() == list(range(2_000))
    assert set(items["type"].to_pylist()) == {"track", "episode", "audiobook", "video"}
    assert len(set(items["title"].to_pylist())) == 2_000
    assert items["title"][0].as_py().endswith(" 1")


def test_rows_go_by_user_and_then_rise_in_time(tmp_path: Path) -> None:
    write_log(_source(num_events=20_000), tmp_path)
    log = pq.read_table(tmp_path / "log")
    user, time = log["user"].to_numpy(), log["time"].to_numpy()
    step = np.diff(user)
    assert set(step.tolist()) == {0, 1}
    assert (np.diff(time)[step == 0] > 0).all()
    assert time.min() >= LOG_START_S


def test_the_same_seed_gives_the_same_log_and_another_seed_another(tmp_path: Path) -> None:
    logs = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        best = write_log(_source(num_events=10_000, seed=seed), tmp_path / name)
        logs.append((pq.read_table(tmp_path / name / "log"), pq.read_table(tmp_path / name / "items.parquet"), best))
    assert logs[0][0].equals(logs[1][0])
    assert logs[0][1].equals(logs[1][1])
    assert logs[0][2] == logs[1][2]
    assert not logs[0][0].equals(logs[2][0])
    assert logs[0][2]["hr@10"] != logs[2][2]["hr@10"]


def test_shards_can_be_written_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_users, "EVENTS_PER_BLOCK", 8_192)
    monkeypatch.setattr(synthetic, "BLOCKS_PER_SHARD", 2)
    source = _source(num_events=40_000)
    write_log(source, tmp_path)
    files = sorted((tmp_path / "log").iterdir())
    assert [file.name for file in files] == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    world = build_world(source)
    for shard in (2, 0, 1):
        num_events = write_shard(source, world, shard, tmp_path / "alone.parquet")
        assert num_events == pq.read_metadata(files[shard]).num_rows
        assert pq.read_table(tmp_path / "alone.parquet").equals(pq.read_table(files[shard]))
    users = pq.read_table(tmp_path / "log")["user"].to_numpy()
    assert np.array_equal(np.unique(users), np.arange(source.users))


def test_files_of_an_earlier_log_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "part-00007.parquet").write_bytes(b"old")
    write_log(_source(num_events=10_000), tmp_path)
    assert [file.name for file in (tmp_path / "log").iterdir()] == ["part-00000.parquet"]


def test_memory_does_not_grow_with_the_number_of_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_users, "EVENTS_PER_BLOCK", 2**15)
    monkeypatch.setattr(synthetic, "best_known", lambda source, world: {})
    write_log(_source(num_events=10_000), tmp_path)  # what is imported on first use is not counted
    python, arrow = _peak_bytes(_source(num_events=100_000), tmp_path, monkeypatch)
    python_of_more, arrow_of_more = _peak_bytes(_source(num_events=400_000), tmp_path, monkeypatch)
    assert python_of_more < 1.3 * python < 10e6
    assert arrow_of_more < 1.5 * arrow + 1e6


def _peak_bytes(source: SyntheticSource, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Most bytes that Python (numpy too) and Arrow held while the log was written."""
    arrow: list[int] = []

    def drawn(block: UserBlock) -> pa.Table:
        table = events_table(block)
        arrow.append(pa.total_allocated_bytes())
        return table

    monkeypatch.setattr(synthetic, "events_table", drawn)
    tracemalloc.start()
    write_log(source, folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, max(arrow)


def test_a_folder_that_cannot_be_written_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"The synthetic log cannot be written to .*; free space or choose another"):
        write_log(_source(num_events=10_000), tmp_path)


@pytest.mark.parametrize(("num_events", "num_users"), [(10_000, 2_001), (1_000_000, 249)])
def test_histories_that_are_too_short_or_too_long_are_refused(num_events: int, num_users: int) -> None:
    with pytest.raises(ValueError, match=r"must be 5 to 4000 events a user, .*; use \d+ users, or leave num_users out"):
        _source(num_events=num_events, num_users=num_users)


def test_users_follow_the_events_unless_they_are_given() -> None:
    assert _source(num_events=1_000_000_000).users == 20_000_000
    assert _source(num_events=10_000, num_users=100).users == 100


# --- the shape of a listening log ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_items", [100, 101, 105, 109, 2_000])
def test_a_catalogue_of_any_size_is_a_proper_world(num_items: int) -> None:
    world = build_world(_source(num_items=num_items))
    assert world.num_items == world.size.sum() == num_items
    assert world.size.min() >= 1
    assert np.allclose(world.tastes.sum(axis=1), 1)
    genres = range(world.num_genres)
    assert all(np.allclose(world.popularity[:, world.genre_of == genre].sum(axis=1), 1) for genre in genres)
    assert np.array_equal(np.sort(world.follows), np.arange(num_items)), "every item follows exactly one"
    item_genre = world.genre_of[world.collection_of]
    assert np.array_equal(item_genre[world.follows], item_genre)


def test_item_counts_fall_as_a_power_of_the_rank(block: UserBlock) -> None:
    counts = np.sort(np.bincount(block.items[_held(block)]))[::-1]
    rank = np.arange(20, 800)
    slope = np.polyfit(np.log(rank), np.log(counts[rank - 1]), 1)[0]
    assert -1.2 < slope < -0.5


def test_sessions_can_be_told_from_the_gaps(block: UserBlock) -> None:
    gaps = np.diff(block.times, axis=0)[_held(block)[1:]]
    assert ((gaps >= SESSION_GAP_MIN_S) | (gaps <= 3_600)).all()
    assert (gaps >= SESSION_GAP_MIN_S).mean() == pytest.approx(SESSION_START, abs=0.005)


def test_skips_are_as_frequent_as_the_items_say_and_short(block: UserBlock, world: World) -> None:
    held = _held(block)
    skipped = block.actions[held] == SKIP
    assert skipped.mean() == pytest.approx(world.skip[block.items[held]].mean(), abs=0.005)
    assert 0.1 < skipped.mean() < 0.35
    assert block.played_s[held][skipped].max() <= 30
    assert block.played_s[held][~skipped].min() >= 60


def test_episodes_follow_in_order_more_than_tracks(block: UserBlock, world: World) -> None:
    held = _held(block)[1:]
    before, after = block.items[:-1][held], block.items[1:][held]
    inside = np.diff(block.times, axis=0)[held] < SESSION_GAP_MIN_S
    kind = world.item_type[world.collection_of[before]]
    shares = [(after == world.follows[before])[inside & (kind == index)].mean() for index in range(len(ITEM_TYPES))]
    expected = [CONTINUE_INSIDE * (t.order + (1 - t.order) / t.size) for t in ITEM_TYPES]
    assert shares == pytest.approx(expected, abs=0.04)


def test_listeners_repeat_and_keep_to_their_taste(block: UserBlock, world: World) -> None:
    recent = np.stack([block.items[8 - lag : -lag] for lag in range(1, 9)])
    repeats = (recent == block.items[8:]).any(axis=0)[_held(block)[8:]]
    assert 0.2 < repeats.mean() < 0.5
    genre = world.genre_of[world.collection_of[block.items]]
    own = [np.bincount(genre[:length, user], minlength=10).max() / length for user, length in enumerate(block.lengths)]
    assert np.mean(own) > 3 * np.bincount(genre[_held(block)]).max() / _held(block).sum()


def test_popularity_drifts_over_the_season() -> None:
    source = _source(num_events=500_000, num_users=250)  # about eight months each
    world = build_world(source)
    block = UserSampler(source, world).draw(0)
    held = _held(block)
    quarter = (block.times[held] - LOG_START_S) // (WEEK_S * SEASON_WEEKS // 4)
    collection = world.collection_of[block.items[held]]
    counts = np.stack(
        [np.bincount(collection[quarter == q], minlength=len(world.first)) for q in range(5)]
    )  # [5, num_collections]
    share = counts / counts.sum(axis=1, keepdims=True)
    half_a_season_apart, one_season_apart = np.abs(share[0] - share[2]).sum(), np.abs(share[0] - share[4]).sum()
    assert half_a_season_apart > 2 * one_season_apart
    assert half_a_season_apart > 0.2


# --- the best known metrics -----------------------------------------------------------------------------------------


def _next_by_hand(
    world: World, week: int, recent: list[int], genre_shares: npt.NDArray[np.float64], starts: bool
) -> npt.NDArray[np.float64]:
    """The world's rule in words, item by item: what is played after `recent` by a listener with these genre shares."""
    repeat = (REPEAT_AT_START if starts else REPEAT_INSIDE) if recent else 0.0
    carry_on = (CONTINUE_AT_START if starts else CONTINUE_INSIDE) if recent else 0.0
    probability = np.zeros(world.num_items)
    for collection, (first, size) in enumerate(zip(world.first.tolist(), world.size.tolist(), strict=True)):
        chosen = genre_shares[world.genre_of[collection]] * world.popularity[week, collection]
        probability[first] += (1 - repeat - carry_on) * chosen * FIRST_ITEM
        for item in range(first, first + size):
            probability[item] += (1 - repeat - carry_on) * chosen * (1 - FIRST_ITEM) / size
    if recent:
        for item in recent[-8:]:
            probability[item] += repeat / len(recent[-8:])
        current = world.collection_of[recent[-1]]
        order, size = world.order[current], int(world.size[current])
        probability[world.follows[recent[-1]]] += carry_on * order
        for item in range(world.first[current], world.first[current] + size):
            probability[item] += carry_on * (1 - order) / size
    return probability


def _last_by_hand(world: World, items: list[int], times: list[int], last_starts: float) -> npt.NDArray[np.float64]:
    """Probability of the item after `items`: a sum over every path of tastes that the listener could have had."""
    num_tastes = len(world.tastes)
    weeks = [(time - LOG_START_S) // WEEK_S % SEASON_WEEKS for time in times]
    starts = [True] + [b - a >= SESSION_GAP_MIN_S for a, b in itertools.pairwise(times)]
    total = np.zeros(world.num_items)
    for path in itertools.product(range(num_tastes), repeat=len(items)):
        weight = 1 / num_tastes
        for step, taste in enumerate(path):
            if step:
                moves = TASTE_SWITCH / num_tastes if starts[step] else 0.0
                stays = (1 - TASTE_SWITCH if starts[step] else 1.0) if taste == path[step - 1] else 0.0
                weight *= moves + stays
            if weight == 0:
                break
            week = weeks[max(0, step - 1)]
            weight *= _next_by_hand(world, week, items[:step], world.tastes[taste], starts[step])[items[step]]
        if weight == 0:
            continue
        shares = world.tastes[path[-1]]
        inside = _next_by_hand(world, weeks[-1], items, shares, starts=False)
        drifted = (1 - TASTE_SWITCH) * shares + TASTE_SWITCH * world.tastes.mean(axis=0)
        opening = _next_by_hand(world, weeks[-1], items, drifted, starts=True)
        total += weight * (last_starts * opening + (1 - last_starts) * inside)
    result: npt.NDArray[np.float64] = total / total.sum()
    return result


def _tiny() -> tuple[SyntheticSource, World, UserBlock]:
    source = _source(num_events=10_000, num_users=2_000, num_items=100, seed=3)
    world = build_world(source)
    return source, world, UserSampler(source, world).draw(0)


def test_the_probabilities_are_those_of_a_sum_over_all_hidden_paths() -> None:
    _, world, block = _tiny()
    assert len(world.tastes) == 4
    gaps = np.diff(block.times, axis=0) >= SESSION_GAP_MIN_S
    opens = [user for user in np.flatnonzero(block.lengths == 5) if gaps[:3, user].any()][:3]
    short = np.flatnonzero(block.lengths == 4)[:2].tolist()
    chosen = np.sort(np.array(opens + short))
    part = block.columns(chosen)
    events = last_events(world, part)
    blind = next_item_probability(world, events, uses_query_time=False)
    timed = next_item_probability(world, events, uses_query_time=True)
    for user, length in enumerate(part.lengths):
        items, times = part.items[:length, user].tolist(), part.times[:length, user].tolist()
        assert events.target[user] == items[-1]
        assert blind[user] == pytest.approx(_last_by_hand(world, items[:-1], times[:-1], SESSION_START), abs=1e-12)
        starts = float(times[-1] - times[-2] >= SESSION_GAP_MIN_S)
        assert timed[user] == pytest.approx(_last_by_hand(world, items[:-1], times[:-1], starts), abs=1e-12)


def test_the_best_metrics_are_the_expected_ones_of_a_full_sort() -> None:
    source, world, block = _tiny()
    events = last_events(world, block)
    best = best_known(source, world)
    assert best["users"] == len(block.users) == len(events)
    for key, uses_query_time in (("", False), ("/query-time", True)):
        ranked = -np.sort(-next_item_probability(world, events, uses_query_time=uses_query_time), axis=1)
        assert np.allclose(ranked.sum(axis=1), 1)
        for k in (1, 5, 10, 20, 50, 100):
            gains = {"hr": np.ones(k), "ndcg": 1 / np.log2(np.arange(k) + 2), "mrr": 1 / (np.arange(k) + 1)}
            for metric, gain in gains.items():
                assert best[f"{metric}@{k}{key}"] == pytest.approx((ranked[:, :k] @ gain).mean(), rel=1e-9)
    assert best["hr@10/query-time"] > best["hr@10"]
    assert best["hr@100"] == pytest.approx(1)


def test_what_the_best_ranking_hits_is_what_it_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    source = _source(num_events=200_000, num_users=20_000, num_items=300, seed=4)
    best = best_known(source, build_world(source))
    share = best["hr@10"]
    assert best["users"] == 20_000
    assert best["hr@10/realised"] == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5)
    monkeypatch.setattr(synthetic_best, "MAX_USERS", 2_000)
    sampled = best_known(source, build_world(source))
    assert sampled["users"] == 2_000
    assert sampled["hr@10"] == pytest.approx(share, abs=4 * sampled["hr@10/standard-error"])


def test_actions_and_longer_memory_do_not_beat_the_best(block: UserBlock, world: World) -> None:
    """Whatever else the history holds, the share of hits inside any part of it is the expected one."""
    events = last_events(world, block)
    probability = next_item_probability(world, events, uses_query_time=False)
    top = np.argpartition(-probability, 10, axis=1)[:, :10]
    surprise = (top == events.target[:, None]).any(axis=1) - np.take_along_axis(probability, top, 1).sum(axis=1)
    users = np.arange(len(events))
    last_action = block.actions[block.lengths - 2, users]
    for part in (last_action == SKIP, last_action != SKIP, block.lengths > 60, block.lengths < 30, events.week > 4):
        assert abs(surprise[part].mean()) < 4 * surprise[part].std() / part.sum() ** 0.5


def test_popularity_is_far_from_the_best_and_the_best_leaves_room(
    source: SyntheticSource, world: World, block: UserBlock
) -> None:
    best = best_known(source, world)["hr@10"]
    training = np.arange(len(block.items))[:, None] < block.lengths - 2
    popular = np.argsort(-np.bincount(block.items[training], minlength=world.num_items))[:10]
    popularity = np.isin(last_events(world, block).target, popular).mean()
    assert 0.5 < best < 0.8
    assert 0.02 < popularity < 0.25 * best


def test_every_user_can_be_held_out_from(block: UserBlock) -> None:
    assert block.lengths.min() >= 4
    assert sorted(block.users.tolist()) == list(range(4_000))
