"""Top-k for every user through Ray Data: every user once, in original ids, with the scores that Recommender gives."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from genrec.config import ExperimentConfig
from genrec.data.manifest import describe_sequence_file, load_manifest, save_manifest
from genrec.data.schema import ITEMS_FILE, MANIFEST_FILE
from genrec.errors import ConfigError, DataError
from genrec.inference.batch import recommend_all
from genrec.inference.export import write_export
from genrec.inference.recommender import Recommender
from genrec.inference.serving import Serving
from genrec.models.build import build_model
from genrec.run_dir import RunDir, run_dir_of

NUM_ITEMS = 20


def random_sequences() -> list[list[int]]:
    """53 users; the last has seen everything but one item."""
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, NUM_ITEMS + 1, rng.integers(1, 14)).tolist() for _ in range(52)]
    return [*sequences, list(range(1, NUM_ITEMS))]


def published_run(config: ExperimentConfig) -> RunDir:
    """A run whose export holds an untrained model."""
    torch.manual_seed(0)
    run = run_dir_of(config)
    run.create(config)
    items_path = Path(config.data.prepared) / ITEMS_FILE
    write_export(run.export_path, build_model(config, NUM_ITEMS).state_dict(), config, items_path, {"step": 1})
    return run


def test_every_user_gets_what_the_recommender_gives(tmp_path: Path, write_prepared, make_config) -> None:
    sequences = random_sequences()
    folder = write_prepared(tmp_path / "set", sequences, num_files=3, rows_per_group=7, string_ids=True)
    config = make_config(folder, "evaluation.users_per_batch=16")
    run = published_run(config)

    target = run.root / "recommendations"
    target.mkdir()
    (target / "part-99999.parquet").write_bytes(b"of an earlier call")
    with pytest.raises(ConfigError, match="exists"):
        recommend_all(run, None, 4)
    output = recommend_all(run, None, 4, overwrite=True)
    assert output == target.resolve()
    assert all(path.name.startswith("part-") for path in output.iterdir())
    table = pq.read_table(output)
    assert table.schema.types == [pa.string(), pa.list_(pa.string()), pa.list_(pa.float32())]
    rows = {row["user"]: row for row in table.to_pylist()}
    assert table.num_rows == len(rows) == len(sequences)

    recommender = Recommender.load(run.root)
    for user, items in enumerate(sequences):
        expected = recommender.recommend([f"item-{10 * item}" for item in items], 4)
        row = rows[f"user-{1000 + user}"]
        assert row["items"] == [pair.item for pair in expected]
        assert row["scores"] == pytest.approx([pair.score for pair in expected], rel=1e-5, abs=1e-7)
    assert rows["user-1052"]["items"] == ["item-200"]
    assert sorted(path.name for path in output.parent.iterdir()) == ["config.yaml", "export", "recommendations"]


def test_what_cannot_work_is_refused_before_ray_starts(
    tmp_path: Path, write_prepared, make_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genrec.inference.batch.ensure_ray", lambda: pytest.fail("Ray was started"))
    folder = write_prepared(tmp_path / "set", random_sequences())
    run = published_run(make_config(folder))
    with pytest.raises(ConfigError, match=r"k \(21\) must be between 1 and the catalogue's 20 items"):
        recommend_all(run, None, 21)
    with pytest.raises(ConfigError, match=r"now \(3\) is before the log's last event"):
        recommend_all(run, None, 2, now=3)
    with pytest.raises(ConfigError, match="writes no codes that items could share; leave max_per_prefix out"):
        recommend_all(run, None, 2, serving=Serving(max_per_prefix=2))
    with pytest.raises(DataError, match="nowhere/export is not an export"):
        recommend_all(RunDir(tmp_path / "nowhere"), None, 2)
    (run.root / "recommendations").mkdir()
    with pytest.raises(ConfigError, match="recommendations exists; choose another output folder"):
        recommend_all(run, None, 2)
    (run.root / "recommendations" / "mine.txt").touch()
    with pytest.raises(ConfigError, match=r"holds mine\.txt, which is no file of recommendations"):
        recommend_all(run, None, 2, overwrite=True)
    (run.root / "recommendations").rename(run.root / ".recommendations.old")  # as a kill between two renames leaves it
    with pytest.raises(ConfigError, match="recommendations exists; choose another output folder"):
        recommend_all(run, None, 2)
    shutil.rmtree(run.root / "recommendations")
    items = pq.read_table(folder / ITEMS_FILE)
    pq.write_table(items.set_column(1, "item", pa.array(items["item"].to_numpy()[::-1])), folder / ITEMS_FILE)
    with pytest.raises(DataError, match="not those that the model was trained on"):
        recommend_all(run, None, 2)
    (folder / ITEMS_FILE).unlink()
    with pytest.raises(DataError, match=r"items\.parquet cannot be read"):
        recommend_all(run, None, 2)
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(DataError, match="not a prepared data set"):
        recommend_all(run, None, 2)


def test_a_set_that_was_appended_to(tmp_path: Path, write_prepared, make_config) -> None:
    sequences = random_sequences()
    config = make_config(write_prepared(tmp_path / "set", sequences, rows_per_group=7))
    run = published_run(config)
    # Later: items 21 and 22 are new, one user knows nothing else, and user 3 has moved to another file.
    shutil.rmtree(tmp_path / "set")
    later = [*sequences, [21, 22]]
    later[3] = [21, *later[3], 22]
    folder = write_prepared(tmp_path / "set", later, rows_per_group=7)
    manifest = load_manifest(folder)
    moved = pq.ParquetFile(folder / "sequences/part-00000.parquet").read_row_group(0).slice(3, 1)
    pq.write_table(moved, folder / "sequences/part-00001.parquet")
    np.save(folder / "sequences/part-00000.superseded.npy", np.array([3]))
    files = tuple(describe_sequence_file(folder, f"part-0000{number}.parquet") for number in (0, 1))
    save_manifest(folder, manifest.model_copy(update={"files": files}))

    table = pq.read_table(recommend_all(run, None, 4))
    rows = {row["user"]: row["items"] for row in table.to_pylist()}
    assert table.num_rows == len(rows) == len(later)
    recommender = Recommender.load(run.root)
    for user, items in enumerate(sequences):
        expected = recommender.recommend([10 * item for item in items], 4)
        assert rows[1000 + user] == [pair.item for pair in expected]
    assert rows[1000 + len(sequences)] == []
