"""RecTools' side of `peers.py`; runs inside the RecTools virtual environment and knows nothing of genrec.

throughput: real target events a second of steady training, its own data loader, loss, optimizer and Lightning loop.
quality:    trains on all but each user's last two events; every few epochs, with its clock stopped, it saves the
            vectors that it would rank with, and `peers.py` scores them with the metric code that scores genrec.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import HSTUModel, SASRecModel

from peer_protocol import (
    MIN_LEAVE_ONE_OUT_EVENTS,
    Ids,
    PeerModel,
    SteadyMeter,
    model_from_json,
    peak_memory_bytes,
    read_sequences,
    targets_per_epoch,
    training_parts,
    write_measurement,
)

LOSS_NAMES = {"full-softmax": "softmax", "sampled-softmax": "sampled_softmax"}
ENDLESS_EPOCHS = 1_000_000
USERS_PER_BATCH = 512


class ThroughputCallback(pl.Callback):
    """Feeds the meter at every batch end and stops the trainer when it has enough."""

    def __init__(self, meter: SteadyMeter) -> None:
        self.meter = meter

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Counts targets that are not padding."""
        trainer.should_stop = self.meter.batch_done(int((batch["y"] != 0).sum()))


class CurveCallback(pl.Callback):
    """Saves what ranks at epoch ends, and stops after `max_seconds` of training; saving is not on the clock."""

    def __init__(self, folder: Path, histories: dict[str, list[Ids]], max_seconds: float, every_epochs: int) -> None:
        self.folder = folder
        self.histories = histories
        self.max_seconds = max_seconds
        self.every_epochs = every_epochs
        self.trained_s = 0.0
        self.resumed_s = 0.0
        self.points: list[dict[str, Any]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self.resumed_s = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Stops the trainer, in the middle of an epoch if need be, when the time is over."""
        if self.trained_s + time.perf_counter() - self.resumed_s >= self.max_seconds:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the vectors of this moment."""
        self.trained_s += time.perf_counter() - self.resumed_s
        if trainer.should_stop or (trainer.current_epoch + 1) % self.every_epochs == 0:
            self._save(trainer, pl_module)
        self.resumed_s = time.perf_counter()

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        started_s = time.perf_counter()
        path = self.folder / f"step_{trainer.global_step:08d}.npz"
        module.eval()
        np.savez(path, **ranking_vectors(module, self.histories))
        module.train()
        self.points.append(
            {
                "step": trainer.global_step,
                "epoch": trainer.global_step / trainer.num_training_batches,
                "training_s": self.trained_s,
                "saving_s": time.perf_counter() - started_s,
                "vectors": path.name,
            }
        )


def ranking_vectors(module: pl.LightningModule, histories: dict[str, list[Ids]]) -> dict[str, Any]:
    """`item_ids`, `items` [num_items, dim] and, for each role, user vectors [num_users, dim] in the order given.

    Items that its training has not seen have no vector; it drops them from a history as its own recommend does.
    """
    preparator = module.data_preparator
    model = module.torch_model
    item_ids = preparator.get_known_item_ids().astype(np.int64)
    internal = dict(zip(item_ids.tolist(), preparator.get_known_items_sorted_internal_ids().tolist(), strict=True))
    max_length = preparator.session_max_len
    arrays: dict[str, Any] = {"item_ids": item_ids}
    with torch.no_grad():
        items = model.item_model.get_all_embeddings()
        arrays["items"] = items[preparator.get_known_items_sorted_internal_ids()].numpy()
        for role, sequences in histories.items():
            padded = np.zeros((len(sequences), max_length), dtype=np.int64)
            for row, sequence in enumerate(sequences):
                known = [internal[item] for item in sequence.tolist() if item in internal][-max_length:]
                if known:
                    padded[row, -len(known) :] = known
            parts = torch.from_numpy(padded).split(USERS_PER_BATCH)
            arrays[role] = torch.cat([model.encode_sessions({"x": x}, items)[:, -1] for x in parts]).numpy()
    return arrays


def as_dataset(training: list[Ids]) -> Dataset:
    """RecTools' data set; the log's order becomes ordinal seconds, as it has no times."""
    items = np.concatenate(training)
    frame = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(training)), [len(sequence) for sequence in training]),
            Columns.Item: items,
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(np.arange(len(items)), unit="s"),
        }
    )
    return Dataset.construct(frame)


def build(model: PeerModel, callback: pl.Callback) -> SASRecModel | HSTUModel:
    """RecTools' model with its defaults for everything that the comparison does not fix."""

    def trainer() -> pl.Trainer:
        return pl.Trainer(
            accelerator="cpu",
            devices=1,
            precision="32-true",
            min_epochs=0,
            max_epochs=ENDLESS_EPOCHS,
            callbacks=[callback],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )

    kind = {"sasrec": SASRecModel, "hstu": HSTUModel}[model.kind]
    return kind(
        n_factors=model.dim,
        n_blocks=model.num_layers,
        n_heads=model.num_heads,
        dropout_rate=model.dropout,
        session_max_len=model.max_length,
        batch_size=model.batch_sequences,
        loss=LOSS_NAMES[model.loss],
        n_negatives=model.num_negatives,
        lr=model.lr,
        dataloader_num_workers=0,
        get_trainer_func=trainer,
    )


def fit(model: PeerModel, training: list[Ids], callback: pl.Callback) -> tuple[pl.Callback, float]:
    """The callback as it came out of training (RecTools copies its trainer), and the seconds of the whole fit."""
    pl.seed_everything(model.seed)
    built = build(model, callback)
    started_s = time.perf_counter()
    built.fit(as_dataset(training))
    (copied,) = (c for c in built.fit_trainer.callbacks if isinstance(c, type(callback)))
    return copied, time.perf_counter() - started_s


def measure_throughput(model: PeerModel, sequences: list[Ids], warmup_batches: int, seconds: float) -> dict[str, Any]:
    """One steady-state reading."""
    training = training_parts(sequences)
    callback, _ = fit(model, training, ThroughputCallback(SteadyMeter(warmup_batches, seconds)))
    return callback.meter.reading() | {"targets_per_epoch": targets_per_epoch(training, model.max_length)}


def measure_quality(
    model: PeerModel, sequences: list[Ids], folder: Path, max_seconds: float, every_epochs: int
) -> dict[str, Any]:
    """The points of the curve; the vectors of each are in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    long_enough = [sequence for sequence in sequences if len(sequence) >= MIN_LEAVE_ONE_OUT_EVENTS]
    histories = {"validation": [s[:-2] for s in long_enough], "test": [s[:-1] for s in long_enough]}
    callback, fit_s = fit(model, training_parts(sequences), CurveCallback(folder, histories, max_seconds, every_epochs))
    return {"points": callback.points, "fit_s": fit_s}


def main() -> None:
    """Measures what the command line asks for and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "quality"])
    parser.add_argument("--model", required=True, help="PeerModel as JSON")
    parser.add_argument("--log", required=True, help="the log file")
    parser.add_argument("--layout", choices=["pairs", "lists"], required=True)
    parser.add_argument("--out", required=True, help="where the measurement goes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup-batches", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-seconds", type=float, default=600)
    parser.add_argument("--every-epochs", type=int, default=1)
    parser.add_argument("--vectors", help="folder for the vectors of a quality curve")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", module="pytorch_lightning|rectools")
    model = model_from_json(arguments.model)
    layout: Literal["pairs", "lists"] = arguments.layout
    sequences = read_sequences(arguments.log, layout)
    if arguments.what == "throughput":
        measurement = measure_throughput(model, sequences, arguments.warmup_batches, arguments.seconds)
    else:
        measurement = measure_quality(
            model, sequences, Path(arguments.vectors), arguments.max_seconds, arguments.every_epochs
        )
    write_measurement(arguments.out, measurement | {"peak_memory_bytes": peak_memory_bytes()})


if __name__ == "__main__":
    main()
