"""Mixing parts in the plan: shares held, each part's windows once in each of its own passes, cursors."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from genrec.data.manifest import Part, load_manifest, save_manifest
from genrec.data.plan import Plan, make_plan
from genrec.data.stream import local_tables, worker_batches
from genrec.errors import ConfigError

BATCH = "batch={tokens_per_step: 64, micro_batches_per_step: 2, chunk_tokens: 2048}"
SIZES = {"music": 900, "talk": 300}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_prepared) -> Path:
    """Users 0 .. 899 are music, the others talk; four files, three of them music."""
    sequences = [[user % 50 + 1] * 10 for user in range(1_200)]
    folder = write_prepared(tmp_path_factory.mktemp("mixed") / "set", sequences, rows_per_group=15, num_files=4)
    parts = (Part(name="music", num_files=3), Part(name="talk", num_files=1))
    save_manifest(folder, load_manifest(folder).model_copy(update={"parts": parts}))
    return folder


@pytest.fixture(scope="module")
def make_mixed(folder: Path, make_config):
    return lambda mix, *more: make_plan(make_config(folder, BATCH, f"sequence.mix={mix}", *more))


def users_by_chunk(plan: Plan, end_step: int) -> list[list[int]]:
    span = {"start_step": 0, "end_step": end_step, "rank": 0, "workers": 1}
    chunks: dict[tuple[int, int], list[int]] = {}
    for _, batch in worker_batches(local_tables(plan, **span), **span, parts=2):
        chunks.setdefault(batch.micro_batch_id[:2], []).extend(batch.users.tolist())
    return list(chunks.values())


def test_every_chunk_mixes_the_parts_by_their_shares(make_mixed) -> None:
    plan = make_mixed("{music: 0.5, talk: 0.5}")
    chunks = users_by_chunk(plan, plan.num_steps(2, None))
    assert len(chunks) > 4
    for users in chunks:
        assert sum(user >= 900 for user in users) / len(users) == pytest.approx(0.5, abs=0.06)


def test_each_part_is_passed_through_whole_before_it_starts_again(make_mixed) -> None:
    plan = make_mixed("{music: 1, talk: 3}")
    passes: dict[str, Counter] = {"music": Counter(), "talk": Counter()}
    end = plan.num_steps(3, None)
    visits = [visit for chunk in plan.chunks(start_step=0, end_step=end) for visit in chunk.row_groups]
    assert max(Counter(visits).values()) == 1
    groups_of = {"music": 60, "talk": 20}
    for visit in visits:
        part = "talk" if visit.path.endswith("00003.parquet") else "music"
        passes[part][visit.epoch] += 1
        # No row group of a pass comes before the pass ahead of it is done.
        assert all(passes[part][before] == groups_of[part] for before in range(visit.epoch))
    assert len(passes["talk"]) > 6
    users = Counter(user for chunk in users_by_chunk(plan, end) for user in chunk)
    for part, span in (("music", range(900)), ("talk", range(900, 1_200))):
        counts = {users[user] for user in span}
        assert counts <= {len(passes[part]) - 1, len(passes[part])}


def test_an_epoch_has_as_many_tokens_as_the_whole_set(make_mixed) -> None:
    plan = make_mixed("{music: 0.2, talk: 0.8}")
    tokens = [sum(chunk.num_tokens for chunk in plan.epoch(epoch)) for epoch in range(4)]
    assert sum(tokens) == pytest.approx(4 * 1_200 * 7, abs=15 * 7)
    assert max(tokens) - min(tokens) <= 15 * 7


def test_cursors_say_how_often_each_part_was_passed_through(make_mixed, folder: Path, make_config) -> None:
    plan = make_mixed("{music: 0.5, talk: 0.5}")
    end = plan.num_steps(2, None)
    assert plan.cursors(0) == {"music": 0.0, "talk": 0.0}
    found = plan.cursors(end)
    assert found == {"music": pytest.approx(2 * 600 / 900, abs=0.03), "talk": pytest.approx(2 * 600 / 300, abs=0.1)}
    assert plan.cursors(end // 2)["talk"] == pytest.approx(found["talk"] / 2, rel=0.05)
    natural = make_plan(make_config(folder, BATCH))
    assert natural.cursors(natural.num_steps(3, None)) == {"music": 3.0, "talk": 3.0}


def test_a_part_may_be_left_out_and_the_order_is_pure(make_mixed) -> None:
    plan = make_mixed("{music: 1, talk: 0}")
    users = [user for chunk in users_by_chunk(plan, plan.num_steps(1, None)) for user in chunk]
    assert max(users) < 900
    again = make_mixed("{music: 7, talk: 0}")
    assert [again.epoch(e) for e in range(3)] == [plan.epoch(e) for e in range(3)]
    assert make_mixed("{music: 1, talk: 0}", "seed=2").epoch(0) != plan.epoch(0)


def test_stochastic_length_is_drawn_anew_in_every_pass(make_mixed) -> None:
    plan = make_mixed(
        "{music: 1, talk: 1}", "sequence={window: stochastic, max_length: 7, alpha: 1.0, mix: {music: 1, talk: 1}}"
    )
    lengths = [plan.visit_lengths((70, number)).tolist() for number in range(3)]
    assert lengths[0] != lengths[1] != lengths[2]
    assert {length for drawn in lengths for length in drawn} == {2, 7}


def test_names_must_fit(make_mixed) -> None:
    with pytest.raises(ConfigError, match=r"names \['music'\] and .* has the parts \['music', 'talk'\]"):
        make_mixed("{music: 1}")
    with pytest.raises(ConfigError, match="must have shares of 0 or more"):
        make_mixed("{music: -1, talk: 2}")


def test_a_set_without_parts_is_one(tmp_path: Path, write_prepared, make_config) -> None:
    folder = write_prepared(tmp_path / "set", [np.arange(1, 9).tolist()] * 9)
    plan = make_plan(make_config(folder, BATCH))
    assert plan.cursors(plan.num_steps(1, None)) == {"all": 1.0}
