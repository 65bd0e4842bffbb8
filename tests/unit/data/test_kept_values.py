"""Values of events (`data.keep_values`), from the log through every way of preparing to the dwell head's batches."""

import csv
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from prepared_sets import set_values

from genrec.config import DataConfig, ExperimentConfig
from genrec.data.append import append
from genrec.data.batch import Batch
from genrec.data.manifest import load_manifest
from genrec.data.micro_batches import RowGroupReader
from genrec.data.mixture import MixtureJob
from genrec.data.plan import make_plan
from genrec.data.prepare import prepare
from genrec.data.schema import USERS_FILE, VALUES
from genrec.data.sequence_files import read_row_group
from genrec.data.stream import local_tables, worker_batches
from genrec.data.target_actions import TargetRule, target_rule
from genrec.errors import DataError

Event = tuple[str, int, int, float | None]
SCHEMA = pa.schema([("user", pa.string()), ("item", pa.int64()), ("time", pa.int64()), ("seconds", pa.float64())])


def random_events(seed: int, num_events: int = 600) -> list[Event]:
    rng = random.Random(seed)
    return [
        (f"u{rng.randrange(40)}", rng.randrange(30), rng.randrange(50), rng.choice([None, 0.0, 12.5, 240.0]))
        for _ in range(num_events)
    ]


def write_log(folder: Path, name: str, events: list[Event]) -> None:
    folder.mkdir(exist_ok=True)
    rows = [dict(zip(SCHEMA.names, event, strict=True)) for event in events]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / f"{name}.parquet", row_group_size=150)


def config_of(folder: Path, name: str = "parquet", path: str = "log", **settings: Any) -> DataConfig:
    source = {"name": name, "path": str(folder / path), "columns": {"value": "seconds"}}
    return DataConfig.model_validate(
        {"source": source, "prepared": str(folder / "set"), "keep_values": True, "num_shards": 2, **settings}
    )


def values_by_index(prepared: Path) -> dict[int, list[float | None]]:
    found = {}
    for file in load_manifest(prepared).files:
        for group in range(len(file.row_groups)):
            for row in read_row_group(prepared, file.path, group, ["user", VALUES]).to_pylist():
                found[row["user"]] = [None if math.isnan(value) else value for value in row[VALUES]]
    return found


def values_by_user(prepared: Path) -> dict[str, list[float | None]]:
    users = pq.read_table(prepared / USERS_FILE)["user"].to_pylist()
    return {users[index]: values for index, values in values_by_index(prepared).items()}


def expected_values(events: list[Event]) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = {}
    for user, _, _, value in sorted(events, key=lambda event: event[2]):
        found.setdefault(user, []).append(value)
    return found


def test_a_log_keeps_its_values_in_the_order_of_time(tmp_path: Path) -> None:
    events = random_events(1)
    write_log(tmp_path / "log", "day", events)
    assert prepare(config_of(tmp_path)).has_values
    assert values_by_user(tmp_path / "set") == expected_values(events)
    with (tmp_path / "log.csv").open("w", newline="") as file:
        csv.writer(file).writerows([SCHEMA.names, *events])
    prepare(config_of(tmp_path, "csv", "log.csv", prepared=str(tmp_path / "text")))
    assert values_by_user(tmp_path / "text") == expected_values(events)


def test_values_of_dropped_events_go_with_them(tmp_path: Path) -> None:
    events = random_events(2)
    write_log(tmp_path / "log", "day", events)
    prepare(config_of(tmp_path, min_value=1.0))
    kept = [event for event in events if event[3] is not None and event[3] >= 1.0]
    assert 0 < len(kept) < len(events)
    assert values_by_user(tmp_path / "set") == expected_values(kept)


def test_an_append_is_as_everything_at_once(tmp_path: Path) -> None:
    days = [random_events(3), random_events(4, 90)]
    for number, events in enumerate(days):
        write_log(tmp_path / "log", f"day-{number}", events)
        assert (prepare(config_of(tmp_path)) if number == 0 else append(config_of(tmp_path)).manifest).has_values
    assert values_by_user(tmp_path / "set") == expected_values(days[0] + days[1])


def test_without_the_setting_no_set_has_values(tmp_path: Path) -> None:
    write_log(tmp_path / "log", "day", random_events(1))
    manifest = prepare(config_of(tmp_path, keep_values=False))
    assert not manifest.has_values
    assert VALUES not in pq.read_schema(tmp_path / "set" / manifest.files[0].path).names


def test_a_log_without_values_is_refused(tmp_path: Path) -> None:
    write_log(tmp_path / "log", "day", random_events(1))
    source = {"name": "parquet", "path": str(tmp_path / "log")}
    with pytest.raises(DataError, match=r"data.keep_values needs a value column, .* set data.source.columns.value"):
        prepare(config_of(tmp_path, source=source))


def mixed(folder: Path) -> dict[int, list[float | None]]:
    source = {"name": "mixture", "sets": {"one": str(folder / "one"), "two": str(folder / "two")}}
    config = DataConfig.model_validate({"source": source, "prepared": str(folder / "mixed"), "keep_values": True})
    job = MixtureJob(config, folder / "work")
    assert job.run(lambda function, tasks: map(function, tasks)).has_values
    return values_by_index(job.finished)


def test_a_mixture_knows_the_values_of_the_sets_that_have_them(tmp_path: Path, write_prepared) -> None:
    set_values(write_prepared(tmp_path / "one", [[1, 2, 3], [2, 1]]), [[5, 6, 7], [8, math.nan]])
    write_prepared(tmp_path / "two", [[1, 2]])
    assert mixed(tmp_path) == {0: [5, 6, 7], 1: [8, None], 2: [None, None]}


def test_a_mixture_of_sets_without_values_is_refused(tmp_path: Path, write_prepared) -> None:
    for name in ("one", "two"):
        write_prepared(tmp_path / name, [[1, 2, 3]])
    with pytest.raises(DataError, match=r"data\.keep_values is set, and none of the sets has values"):
        mixed(tmp_path)


PARTS = 4
STEPS = f"batch={{tokens_per_step: 64, micro_batches_per_step: {PARTS}}}"
DWELL = "heads={dwell: {}}"


@pytest.fixture
def valued(tmp_path: Path, write_prepared: Callable[..., Path]) -> Path:
    """60 users; an item tells its value, 2.5 times its number, unknown for multiples of 4."""
    rng = random.Random(0)
    sequences = [[rng.randrange(1, 41) for _ in range(rng.randrange(3, 12))] for _ in range(60)]
    folder = write_prepared(tmp_path / "set", sequences, num_items=40, rows_per_group=16)
    return set_values(folder, [[2.5 * item if item % 4 else math.nan for item in row] for row in sequences])


def batches_of(config: ExperimentConfig, rank: int = 0, workers: int = 1) -> dict[tuple[int, int], Batch]:
    plan, rule = make_plan(config), target_rule(config, load_manifest(config.data.prepared))
    span = {"start_step": 0, "end_step": plan.num_steps(1, None), "rank": rank, "workers": workers}
    batches = worker_batches(local_tables(plan, **span), **span, parts=PARTS, targets=rule)
    return {(place.step, place.part): batch for place, batch in batches}


def test_every_next_value_is_told_and_counted(valued: Path, make_config) -> None:
    batches = batches_of(make_config(valued, DWELL, STEPS))
    counts: dict[int, int] = {}
    for (step, _), batch in batches.items():
        assert batch.next_values is not None and batch.next_items is not None
        known = batch.next_values.isfinite()
        assert (known == (batch.next_items % 4 > 0)).all()
        assert (batch.next_values[known] == 2.5 * batch.next_items[known]).all()
        counts[step] = counts.get(step, 0) + int(known.sum())
    assert len(counts) > 3 and sum(counts.values()) > 100
    assert all(batch.step_values == counts[step] for (step, _), batch in batches.items())


def test_two_workers_read_what_one_does(valued: Path, make_config) -> None:
    config = make_config(valued, DWELL, STEPS)

    def told(batches: dict[tuple[int, int], Batch]) -> dict[tuple[int, int], tuple[int, str]]:
        return {place: (batch.step_values, str(batch.next_values.tolist())) for place, batch in batches.items()}

    assert told(batches_of(config, 0, 2)) | told(batches_of(config, 1, 2)) == told(batches_of(config))


def test_a_weight_is_cut_to_its_bounds_and_multiplies_that_of_the_action() -> None:
    values = np.array([3.0, np.nan, -1.0, 1e9], np.float32)
    rule = TargetRule(weights=(2.0,), value_weights=True)
    assert rule.weights_of(np.zeros(4, np.uint8), values).tolist() == [6.0, 2.0, 0.0, 2_000.0]


def test_a_target_weighs_its_value(valued: Path, make_config) -> None:
    config = make_config(valued, STEPS, "loss.value_weights=true")
    sums: dict[int, float] = {}
    batches = batches_of(config)
    for (step, _), batch in batches.items():
        assert batch.target_weights is not None and batch.next_values is None
        rows = batch.targets > 0
        items = batch.targets[rows]
        assert torch.equal(batch.target_weights[rows], torch.where(items % 4 > 0, 2.5 * items, 1.0).float())
        sums[step] = sums.get(step, 0.0) + float(batch.target_weights[rows].double().sum())
    assert all(batch.step_weight == pytest.approx(sums[step], rel=1e-12) for (step, _), batch in batches.items())


def test_values_are_read_for_the_dwell_head_alone(valued: Path, make_config) -> None:
    for batch in batches_of(make_config(valued, STEPS, "heads={action: {}}")).values():
        assert batch.next_values is None and batch.step_values == 1
    assert VALUES not in RowGroupReader(str(valued)).columns


def test_padding_has_no_value(tmp_path: Path, write_prepared: Callable[..., Path], make_config) -> None:
    folder = set_values(write_prepared(tmp_path / "set", [[1, 2, 3, 4]]), [[1, 2, 3, 4]])
    padding = [b for b in batches_of(make_config(folder, STEPS, DWELL)).values() if not len(b.users)]
    assert len(padding) == PARTS - 1
    assert all(batch.next_values.isnan().tolist() == [True] for batch in padding)
