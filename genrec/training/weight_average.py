"""The running average of the weights (EMA): fp32, beside the trained weights, which it never changes.

    average <- d * average + (1 - d) * weight        d = min(optimizer.ema_decay, (1 + n) / (10 + n))

after the n-th applied update (n from 0); a step that is left out counts as none. The ramp lets the average forget the
first, random weights: it is `num_updates` of TensorFlow's `ExponentialMovingAverage`. With bf16 it averages the bf16
weights that the model computes with. Under ZeRO 3 each worker averages its own part of every weight; in a checkpoint
the average is whole, so it fits any number of workers and any engine.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genrec.errors import RunError
from genrec.training.flat_parts import gather_parts, own_part

logger = logging.getLogger(__name__)

AVERAGE_FILE = "average.pt"


class WeightAverage:
    """The average of a model's weights, as this worker holds them. Every method is called by all workers alike."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.begin()

    def begin(self) -> None:
        """Starts from the weights as they are now."""
        self.num_updates = 0
        self._average = {name: local_part(p).detach().float().clone() for name, p in self.model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights into the average; called after every applied update."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, parameter in self.model.named_parameters():
            self._average[name].lerp_(local_part(parameter).detach().float(), 1 - decay)
        self.num_updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model computes with the average inside, and with the trained weights, bit for bit, after it."""
        parameters = dict(self.model.named_parameters())
        trained = {name: local_part(p).detach().clone() for name, p in parameters.items()}
        _fill(parameters, self._average)
        try:
            yield
        finally:
            _fill(parameters, trained)

    def save(self, folder: Path) -> None:
        """Writes the whole average into `folder`: worker 0 does, under ZeRO 3 one weight of all workers at a time."""
        writes = not dist.is_initialized() or dist.get_rank() == 0
        whole = {}
        for name, parameter in self.model.named_parameters():
            gathered = _gathered(parameter, self._average[name])
            if writes:
                whole[name] = gathered.cpu()
        if writes:
            torch.save({"num_updates": self.num_updates, "weights": whole}, folder / AVERAGE_FILE)

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote, on any number of workers; without one it begins anew and says so."""
        if not (folder / AVERAGE_FILE).is_file():
            logger.warning("%s holds no average of the weights: optimizer.ema_decay begins with its weights.", folder)
            self.begin()
            return
        self.num_updates, weights = read_average(folder)
        for name, parameter in self.model.named_parameters():
            whole = _fitting(weights, name, _shape(parameter))
            part = own_part(whole, self._average[name].numel()) if hasattr(parameter, "ds_tensor") else whole
            self._average[name].copy_(part)


def averaged(average: WeightAverage | None) -> AbstractContextManager[None]:
    """The model computes with the average inside, when there is one."""
    return nullcontext() if average is None else average.applied()


def read_average(folder: Path) -> tuple[int, dict[str, Tensor]]:
    """How many updates the average in a checkpoint's folder is of, and its weights, whole, in fp32 on CPU."""
    saved = torch.load(folder / AVERAGE_FILE, map_location="cpu", weights_only=True, mmap=True)
    return saved["num_updates"], saved["weights"]


def fill_with_average(model: nn.Module, folder: Path) -> None:
    """Copies the average, when a checkpoint's folder holds one, into a model that holds its weights whole."""
    if not (folder / AVERAGE_FILE).is_file():
        return
    _, weights = read_average(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_fitting(weights, name, tuple(parameter.shape)))


def local_part(parameter: nn.Parameter) -> Tensor:
    """What this worker holds of a weight: all of it, or under ZeRO 3 its flat part, the last with padding."""
    part: Tensor = getattr(parameter, "ds_tensor", parameter)
    return part


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _fitting(weights: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    found = weights.get(name)
    if found is None or tuple(found.shape) != shape:
        raise RunError(
            f"The checkpoint's average of {name} has shape {None if found is None else list(found.shape)} and the "
            f"model's has {list(shape)}; the model was changed: start over with --fresh."
        )
    return found


def _gathered(parameter: nn.Parameter, part: Tensor) -> Tensor:
    """The whole tensor that the workers hold parts of."""
    return gather_parts(part, _shape(parameter)) if hasattr(parameter, "ds_tensor") else part


@torch.no_grad()
def _fill(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    """Puts values into the weights; those that ZeRO 3 holds whole at the moment are gathered again."""
    whole = [p for p in parameters.values() if hasattr(p, "ds_tensor") and p.numel() > 0]
    if whole:
        whole[0].partition(whole)  # type: ignore[attr-defined]
    for name, parameter in parameters.items():
        local_part(parameter).data.copy_(values[name])
    if whole:
        whole[0].all_gather(whole)  # type: ignore[attr-defined]
