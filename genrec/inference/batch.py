"""Top-k for every user of a prepared set, written as Parquet: Ray Data streams them through copies of the model."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch

from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest, load_manifest
from genrec.data.ray_session import ensure_ray
from genrec.data.schema import USERS_FILE
from genrec.data.sequence_files import read_row_group
from genrec.data.stored_set import at_hand, whole_place
from genrec.errors import ConfigError, DataError, RunError
from genrec.evaluation.users import Histories, IntArray, histories_from_table
from genrec.inference.recommender import Recommender, check_k
from genrec.inference.same_items import check_same_items
from genrec.inference.serving import AS_TRAINED, Serving
from genrec.run_dir import RunDir

EXCEPTION_LINE = re.compile(r"(?!ray\.)[\w.]*(Error|Exception): ")
PART = re.compile(r"part-\d+\.parquet")
USERS_PER_BLOCK = 4_096  # users that one call of the model's copy gets


def recommend_all(
    run: RunDir,
    output: Path | None = None,
    k: int = 10,
    *,
    exclude_seen: bool = True,
    now: int | None = None,
    overwrite: bool = False,
    serving: Serving = AS_TRAINED,
) -> Path:
    """Writes the k best items of every user, from all of the user's events, and returns the folder.

    `output` (None: `recommendations` in the run directory) gets `part-*.parquet` with a row a user: `user` (original
    id), `items` (original ids, best first; fewer than k when `exclude_seen` leaves fewer), `scores`, and what the
    model's heads expect of each item: `p_ACTION` for every action, `seconds`. `now` is the second that is asked about
    (None: right after each user's last event). Items that were appended to the set since the training are left out of
    the histories; a user with no other gets no items. `serving` says which model answers, and with which items. The
    folder appears once it is complete.
    Raises ConfigError on a k beyond the catalogue, on an output that exists (unless `overwrite`) and on a model that
    cannot do what is asked, DataError when the export or the prepared set is missing or they do not belong together,
    RunError when Ray Data fails.
    """
    recommender = Recommender.load(run.root, served=serving).limited(serving.item_type, serving.max_per_prefix)
    config = recommender.config
    target = (output or run.root / "recommendations").resolve()
    check_k(k, recommender.num_items)
    if _old(target).exists() and not target.exists():
        _old(target).rename(target)  # a call before was killed between the two renames of `_finish`
    _check_output(target, overwrite=overwrite)
    prepared = at_hand(config.data.prepared).resolve()
    manifest = load_manifest(prepared)
    check_same_items(recommender.item_ids, recommender.actions, config, manifest)
    if now is not None and now < manifest.time_range[1]:
        raise ConfigError(
            f"now ({now}) is before the log's last event ({manifest.time_range[1]}); give a later second, or none."
        )
    draft = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    ensure_ray()
    try:
        # One copy a machine in shared memory, and the same weights for all even if training replaces the export.
        shared = ray.put((recommender, _user_ids(prepared, manifest)))
        question = {"k": k, "exclude_seen": exclude_seen, "now": now, "has_times": manifest.has_times}
        groups = [
            {"path": file.path, "group": group}
            for file in manifest.files
            for group, described in enumerate(file.row_groups)
            if described.rows
        ]
        rows = ray.data.from_items(groups).map_batches(
            _ReadGroup(whole_place(config.data.prepared)), batch_size=1, batch_format="pyarrow"
        )
        rows = rows.map_batches(
            _TopK,
            fn_constructor_kwargs={"shared": [shared], **question},
            batch_size=USERS_PER_BLOCK,
            batch_format="pyarrow",
            zero_copy_batch=True,
            **_resources(config),
        )
        rows.context.enable_progress_bars = False
        rows.write_parquet(str(draft))
        _finish(draft, target, manifest.num_users)
    except (ray.exceptions.RayError, OSError) as error:
        raise RunError(f"Recommending to {target} failed, and nothing was written there: {_reason(error)}") from (
            error.with_traceback(None)  # whose frames keep Ray actors, and so their CPUs
        )
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


class _ReadGroup:
    """The map task before the model: the place of a row group in, its sequences out."""

    def __init__(self, prepared: str) -> None:
        self.prepared = prepared
        self.__name__ = "sequences"

    def __call__(self, batch: pa.Table) -> pa.Table:
        (place,) = batch.to_pylist()
        columns = ["user", "items", "times", "actions"]
        return read_row_group(self.prepared, place["path"], place["group"], columns).combine_chunks()


class _TopK:
    """One copy of the model: sequences in, recommendations out."""

    def __init__(self, *, shared: list[Any], k: int, exclude_seen: bool, now: int | None, has_times: bool) -> None:
        recommender, self.user_ids = ray.get(shared[0])
        on_gpu = torch.cuda.is_available() and bool(ray.get_gpu_ids())
        self.recommender: Recommender = recommender.to("cuda" if on_gpu else "cpu")
        self.k, self.exclude_seen, self.now, self.has_times = k, exclude_seen, now, has_times

    def __call__(self, rows: pa.Table) -> pa.Table:
        everyone = histories_from_table(rows)
        histories = known_events(everyone, self.recommender.num_items)
        query_times = self.recommender.query_times(histories, self.now, has_times=self.has_times)
        indices, scores = self.recommender.top_k(histories, self.k, query_times, exclude_seen=self.exclude_seen)
        kept = scores > -np.inf  # [num_known_users, k]
        per_user = np.zeros(len(everyone.users), dtype=np.int64)
        per_user[np.isin(everyone.users, histories.users)] = kept.sum(axis=1)
        offsets = pa.array(np.concatenate([[0], np.cumsum(per_user)]), pa.int32())
        items = self.recommender.item_ids.take(pa.array(indices[kept] - 1))
        columns = {"scores": scores[kept]} | self._expected(histories, indices, query_times, kept)
        lists = {name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in columns.items()}
        users = self.user_ids.take(pa.array(everyone.users))
        return pa.table({"user": users, "items": pa.ListArray.from_arrays(offsets, items), **lists})

    def _expected(
        self, histories: Histories, indices: IntArray, query_times: IntArray, kept: npt.NDArray[np.bool_]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """What the heads say of the items that are kept, a column each."""
        if not self.recommender.has_heads:
            return {}
        shares, seconds = self.recommender.head_answers(histories, indices, query_times)
        columns = {} if shares is None else {f"p_{a}": shares[kept, i] for i, a in enumerate(self.recommender.actions)}
        return columns if seconds is None else columns | {"seconds": seconds[kept]}


def known_events(histories: Histories, num_items: int) -> Histories:
    """The events of items 1 to `num_items`, and the users that have any; items added since the training come after."""
    known = histories.items <= num_items
    if known.all():
        return histories
    rows = np.repeat(np.arange(len(histories.users)), histories.lengths)[known]
    lengths = np.bincount(rows, minlength=len(histories.users))
    return Histories(
        users=histories.users[lengths > 0],
        items=histories.items[known],
        times=histories.times[known],
        actions=histories.actions[known],
        offsets=np.concatenate([[0], np.cumsum(lengths[lengths > 0])]),
    )


def _old(target: Path) -> Path:
    """Where the recommendations that are replaced are until the new ones have their name."""
    return target.with_name(f".{target.name}.old")


def _check_output(target: Path, *, overwrite: bool) -> None:
    """Raises ConfigError when the output exists, or would replace what are no recommendations."""
    if not target.exists():
        return
    if not overwrite:
        raise ConfigError(f"{target} exists; choose another output folder or allow overwriting.")
    foreign = [e.name for e in target.iterdir() if not PART.fullmatch(e.name)] if target.is_dir() else [target.name]
    if foreign:
        raise ConfigError(
            f"{target} holds {min(foreign)}, which is no file of recommendations and would be lost; choose another "
            "output folder."
        )


def _resources(config: ExperimentConfig) -> dict[str, Any]:
    """Copies of the model: one a GPU, or one a CPU with one CPU left to read and write."""
    available = ray.cluster_resources()
    if config.cluster.gpus_per_worker > 0 and available.get("GPU", 0) >= 1:
        return {"num_gpus": 1, "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=int(available["GPU"]))}
    cpus = available.get("CPU", 1)
    most = max(1, int(cpus) - 1)
    return {"num_cpus": 1 if cpus >= 2 else 0.5, "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=most)}


def _user_ids(prepared: Path, manifest: Manifest) -> pa.Array:
    """Original user ids [num_users]; place i holds user index i."""
    users = _read(prepared / USERS_FILE).sort_by("index")
    if users.num_rows != manifest.num_users:
        raise DataError(
            f"{prepared / USERS_FILE} has {users.num_rows} users and the manifest {manifest.num_users}; run "
            "`genrec prepare CONFIG --overwrite`."
        )
    return pa.concat_arrays(users["user"].chunks)


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}; run `genrec prepare CONFIG --overwrite`.") from error


def _reason(error: Exception) -> str:
    """The line of a Ray error that says what happened; Ray puts stacks and advice around it."""
    lines = [line for line in str(error).splitlines() if EXCEPTION_LINE.match(line)]
    return lines[-1] if lines else str(error).strip()


def _finish(draft: Path, target: Path, num_users: int) -> None:
    """Checks that no user is missing, names the parts, and gives the folder its name."""
    parts = sorted(draft.glob("*.parquet"))
    written = sum(pq.read_metadata(part).num_rows for part in parts)
    if written != num_users:
        raise RunError(f"Recommendations for {written} of {num_users} users were written; run the command again.")
    for number, part in enumerate(parts):
        part.rename(draft / f"part-{number:05d}.parquet")
    old = _old(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    draft.rename(target)
    shutil.rmtree(old, ignore_errors=True)
