"""A checkpoint of one topology for an engine of another: weight by weight instead of shard by shard.

DeepSpeed's converter turns the shards of ZeRO 1 to 3 into one file for each weight and each of its moments (its
"universal" form). What ZeRO 0 and plain PyTorch save is whole already, and becomes the same form. Every engine then
takes its own part of every tensor, one weight at a time, so no worker ever holds a whole second model.
"""

import contextlib
import hashlib
import io
import os
import pickle
import re
import shutil
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genrec.errors import RunError
from genrec.file_lock import locked
from genrec.storage import own_folder

KEYS = ("fp32", "exp_avg", "exp_avg_sq")
"""The master weight, and AdamW's moments."""

TRUST_VARIABLE = "GENREC_TRUST_CHECKPOINTS"
"""Environment variable: 1 reads all that DeepSpeed's files hold, code included."""

_FORCE_VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch.load then is, whatever its caller says
_DONE = "done"


@dataclass(frozen=True, slots=True)
class UniversalState:
    """Weights and moments by name, each in a file of its own; `step` is how many optimizer steps made them."""

    folder: Path
    step: int
    checkpoint: Path
    """The checkpoint that it was made from, with what is whole there already."""

    def names(self) -> list[str]:
        """Names of all weights, sorted."""
        return sorted(path.parent.name for path in (self.folder / "zero").glob("*/fp32.pt"))

    def flat(self, name: str, key: str) -> Tensor:
        """All values of one of `KEYS`, on CPU in fp32; raises RunError when the checkpoint does not have it."""
        path = self.folder / "zero" / name / f"{key}.pt"
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError) as error:
            raise RunError(
                f"The checkpoint has no {key} of the weight {name}, so it cannot go on with other workers or another "
                "engine; continue with what it was written with, or start over with --fresh."
            ) from error
        value: Tensor = loaded["param"] if isinstance(loaded, dict) else loaded
        return value.detach().float().flatten()

    def tensor(self, name: str, key: str, like: Tensor | tuple[int, ...]) -> Tensor:
        """`flat` in the shape of `like`; raises RunError when it does not have as many values."""
        shape = tuple(like.shape) if isinstance(like, Tensor) else like
        value = self.flat(name, key)
        if value.numel() != torch.Size(shape).numel():
            raise RunError(
                f"The checkpoint's {name} has {value.numel()} elements and the model's has {shape}; the model was "
                "changed: start over with --fresh."
            )
        return value.reshape(shape)


@contextlib.contextmanager
def only_weights() -> Iterator[None]:
    """DeepSpeed reads its files in here: tensors, plain values and the classes that it writes, and nothing else.

    Its own loads would run what somebody has hidden in a pickle. Raises RunError, naming what it was, when a file holds
    another object. With `TRUST_VARIABLE` set to 1, files are read as DeepSpeed does.
    """
    if os.environ.get(TRUST_VARIABLE) == "1":
        yield
        return
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get(_FORCE_VARIABLE)
    os.environ[_FORCE_VARIABLE] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = named[1] if named else "an object that is neither"
        raise RunError(
            f"A file of the checkpoint holds more than weights and settings ({what}), which may run code when it is "
            f"read; use another checkpoint, or set {TRUST_VARIABLE}=1 if you trust those who wrote this one."
        ) from error
    finally:
        if before is None:
            del os.environ[_FORCE_VARIABLE]
        else:
            os.environ[_FORCE_VARIABLE] = before


def universal_state(
    checkpoint: Path,
    engine_folder: str,
    step: int,
    source: dict[str, Any],
    say: Callable[[str], None],
    inside: Path | None = None,
) -> UniversalState:
    """The universal form of a checkpoint, made once on each machine and kept in its folder for temporary files.

    `source` is the engine section that the checkpoint was written with. The process that comes first converts, the
    others of the machine wait for it; it raises RunError when that takes more than half an hour, and DataError when the
    folder is another user's. A process that needs one for itself alone gives a folder to make it `inside`: the shared
    one is deleted by whoever is done with it.
    """
    lists = b"".join(path.read_bytes() for path in sorted(checkpoint.glob("rank_*.json")))
    base = inside
    if base is None:
        # The folder for temporary files is everybody's: another user could have put other weights there before.
        base = Path(tempfile.gettempdir()) / f"genrec-universal-{os.getuid()}"
        own_folder(base)
    target = base / hashlib.sha256(lists).hexdigest()[:24]
    with locked(target.with_suffix(".lock"), "converting a checkpoint"):
        if not (target / _DONE).is_file():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            say(f"Converting {checkpoint} for another topology.")
            started_at = time.perf_counter()
            if source["name"] == "torch":
                _from_torch(checkpoint / "torch.pt", target)
            elif source["zero_stage"] == 0:
                _from_stage_0(checkpoint / engine_folder, target)
            else:
                _from_shards(checkpoint / engine_folder, target)
            (target / _DONE).touch()
            say(f"Converted in {time.perf_counter() - started_at:.1f} s.")
    return UniversalState(target, step, checkpoint)


def forget_universal(state: UniversalState) -> None:
    """Deletes the converted form; every worker of the machine may call it once all have loaded."""
    shutil.rmtree(state.folder, ignore_errors=True)


def fill_module(module: nn.Module, state: UniversalState) -> None:
    """Copies the weights into a module that holds them whole."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(state.tensor(name, "fp32", parameter))


def fill_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, state: UniversalState) -> None:
    """Copies the moments into a torch AdamW over the module's own weights."""
    for name, parameter in module.named_parameters():
        optimizer.state[parameter] = _moments(
            optimizer, state.step, *(state.tensor(name, key, parameter).to(parameter.device) for key in KEYS[1:])
        )


def fill_zero_1_2(zero: Any, module: nn.Module, state: UniversalState) -> None:
    """Copies this worker's part of weights and moments into DeepSpeed's optimizer of ZeRO 1 or 2."""
    fill_module(module, state)
    _make_moments(zero.optimizer, zero.single_partition_of_fp32_groups, state.step)
    zero._lazy_init_hp_params_optimizer_state()  # links each weight to its place in the moments just made
    for name, parameter in module.named_parameters():
        if parameter._hp_mapping is None:  # type: ignore[attr-defined]
            continue  # another worker's
        for key in KEYS:
            value = state.tensor(name, key, parameter).to(parameter.device)
            parameter.set_full_hp_param(value, None if key == "fp32" else key)  # type: ignore[attr-defined]
    zero.update_lp_params()


def fill_zero_3(zero: Any, module: nn.Module, state: UniversalState) -> None:
    """Copies this worker's part of weights and moments into DeepSpeed's optimizer of ZeRO 3."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    _make_moments(zero.optimizer, zero.fp32_partitioned_groups_flat, state.step)
    persistent = zero.persistent_parameters
    if persistent:
        persistent[0].partition(persistent)
    for name, parameter in module.named_parameters():
        part = parameter.ds_tensor  # type: ignore[attr-defined]
        for key in KEYS:
            value = state.tensor(name, key, tuple(parameter.ds_shape)).flatten()  # type: ignore[attr-defined]
            first = part.numel() * zero._get_param_partition_rank(parameter)
            local = torch.zeros(part.numel())
            piece = value[first : first + part.numel()]  # the last worker's part may end in padding
            local[: piece.numel()] = piece
            local = local.to(part.device)
            if key == "fp32":
                safe_set_local_fp32_param(parameter, local)
                part.data.copy_(local)
            else:
                safe_set_local_optimizer_state(parameter, local, key)
    if persistent:
        persistent[0].all_gather(persistent)


def _moments(optimizer: torch.optim.Optimizer, step: int, exp_avg: Tensor, exp_avg_sq: Tensor) -> dict[str, Any]:
    """AdamW's state of one tensor: torch counts steps in a tensor, DeepSpeed's CPU Adam in a number."""
    is_deepspeed = type(optimizer).__module__.startswith("deepspeed.")
    count: Any = step if is_deepspeed else torch.tensor(float(step), device=exp_avg.device)
    return {"step": count, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


def _make_moments(optimizer: torch.optim.Optimizer, flats: list[Tensor], step: int) -> None:
    for flat in flats:
        optimizer.state[flat] = _moments(optimizer, step, torch.zeros_like(flat), torch.zeros_like(flat))


def _from_shards(folder: Path, target: Path) -> None:
    """DeepSpeed's own converter, in this process: it takes one shard after another."""
    from deepspeed.checkpoint.ds_to_universal import main

    arguments = Namespace(
        input_folder=str(folder),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    quiet = io.StringIO()  # it prints every phase and draws bars
    with only_weights(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        main(arguments)


def _from_stage_0(folder: Path, target: Path) -> None:
    with only_weights():
        saved = torch.load(folder / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(saved.get("optimizer"), dict) or "state" not in saved["optimizer"]:
        raise RunError(
            f"{folder} holds no plain optimizer state (ZeRO 0 with bf16), so it can only go on with ZeRO 0 and the "
            "same precision; continue with that, or start over with --fresh."
        )
    _write(saved["module"], saved["optimizer"], target)


def _from_torch(path: Path, target: Path) -> None:
    saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    _write(saved["model"], saved["optimizer"], target)


def _write(weights: dict[str, Tensor], optimizer: dict[str, Any], target: Path) -> None:
    """Writes whole weights and moments in the universal form; the optimizer numbers weights in the order of its groups'
    names, or in the model's."""
    states: dict[int, dict[str, Any]] = optimizer["state"]
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    names = [name for group in optimizer["param_groups"] for name in group.get("names", ())]
    names = names or [name for name, value in weights.items() if value.is_floating_point()]
    for number, name in zip(numbers, names, strict=True):
        tensors = {"fp32": weights[name], **{key: states[number][key] for key in KEYS[1:]}}
        folder = target / "zero" / name
        folder.mkdir(parents=True)
        for key, tensor in tensors.items():
            torch.save({"param": tensor.detach().float().cpu().clone()}, folder / f"{key}.pt")
