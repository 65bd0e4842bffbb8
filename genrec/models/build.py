"""From a config to a model: `name` selects the class."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from genrec.config import ExperimentConfig
from genrec.config_models import CodeDecoderConfig, TigerConfig
from genrec.data.item_vectors import ItemVectors
from genrec.errors import ConfigError
from genrec.losses.build import build_loss
from genrec.losses.full import FullSoftmax
from genrec.models.base import SequenceModel
from genrec.models.code_decoder import CodeDecoder
from genrec.models.code_model import CodeModel, CodeSetting
from genrec.models.decoder import Decoder
from genrec.models.fused_table import FusedItemTable
from genrec.models.heads import Heads
from genrec.models.hstu import HSTU
from genrec.models.layers import Inputs
from genrec.models.sasrec import SASRec
from genrec.models.tiger import Tiger
from genrec.semantic.ids import SemanticIds

MODELS: dict[str, Callable[..., SequenceModel]] = {
    "sasrec": SASRec,
    "esasrec": SASRec,
    "hstu": HSTU,
    "decoder": Decoder,
}


def build_model(
    config: ExperimentConfig,
    num_items: int,
    item_types: npt.NDArray[np.uint8] | None = None,
    num_actions: int = 0,
    item_vectors: ItemVectors | None = None,
    semantic_ids: SemanticIds | None = None,
) -> SequenceModel:
    """The model of `config.model` with the loss of `config.loss` and its heads, on the current default device.

    `item_types` [num_items + 1], the type code of every item, is read when `inputs.item_types` asks for it,
    `num_actions`, those that the prepared set has, when `heads.action` is to be trained or measured, `item_vectors`
    when `inputs.item_vectors` asks, and `semantic_ids` by models that write codes; raises ConfigError when they are not
    there then.
    Its weights come from torch's default generator, which the caller seeds; under `torch.device("meta")` there are
    none.
    """
    inputs = Inputs(config.inputs, None if item_types is None else torch.tensor(item_types))
    if config.writes_codes:
        return _code_model(config, semantic_ids, inputs)
    model = MODELS[config.model.name](
        config.model, num_items, config.sequence.max_length, build_loss(config.loss), inputs
    )
    if (fusing := config.inputs.item_vectors) is not None:
        if item_vectors is None:
            raise ConfigError("inputs.item_vectors needs item vectors, and there are none; leave it out.")
        vectors, is_trained = (torch.from_numpy(array) for array in item_vectors)
        model.item_table = FusedItemTable(model.item_table, vectors, is_trained, fusing)
    if config.heads.weights:
        model.heads = Heads(config.heads, model.item_table.dim, num_actions)
    return model


def _code_model(config: ExperimentConfig, ids: SemanticIds | None, inputs: Inputs) -> CodeModel:
    if ids is None:
        raise ConfigError(f"model.name = {config.model.name!r} needs the codes of the items, and there are none.")
    loss = build_loss(config.loss)
    assert isinstance(loss, FullSoftmax)  # the config is checked
    setting = CodeSetting(ids, config.evaluation)
    if isinstance(config.model, TigerConfig):
        return Tiger(config.model, setting, loss, inputs)
    assert isinstance(config.model, CodeDecoderConfig)
    return CodeDecoder(config.model, setting, config.sequence.max_length, loss, inputs)
