"""From a config to a model: `name` selects the class."""

from collections.abc import Callable

from genrec.config import ExperimentConfig
from genrec.losses import build_loss
from genrec.models.base import SequenceModel
from genrec.models.hstu import HSTU
from genrec.models.sasrec import SASRec

MODELS: dict[str, Callable[..., SequenceModel]] = {"sasrec": SASRec, "hstu": HSTU}


def build_model(config: ExperimentConfig, num_items: int) -> SequenceModel:
    """The model of `config.model` with the loss of `config.loss`, on the current default device.

    Its weights come from torch's default generator, which the caller seeds; under `torch.device("meta")` there are
    none.
    """
    return MODELS[config.model.name](config.model, num_items, config.sequence.max_length, build_loss(config.loss))
