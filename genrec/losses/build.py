"""From a config section to a loss."""

from genrec.config import BCEConfig, FullSoftmaxConfig, GBCEConfig, SampledSoftmaxConfig
from genrec.losses.binary import BinaryCrossEntropy
from genrec.losses.full import FullSoftmax
from genrec.losses.negatives import NegativeSampler
from genrec.losses.sampled import SampledSoftmax
from genrec.losses.temperature import Temperature


def build_loss(
    config: FullSoftmaxConfig | SampledSoftmaxConfig | BCEConfig | GBCEConfig,
) -> FullSoftmax | SampledSoftmax | BinaryCrossEntropy:
    """The loss of a config section."""
    temperature = Temperature(config.temperature, learned=config.learn_temperature)
    if isinstance(config, FullSoftmaxConfig):
        return FullSoftmax(temperature, config.max_logits_bytes, config.label_smoothing)
    if isinstance(config, SampledSoftmaxConfig):
        sampler = NegativeSampler(
            num_uniform=config.num_uniform,
            num_popular=config.num_popular,
            num_in_batch=config.num_in_batch,
            popularity_power=1.0 if config.popularity_power is None else config.popularity_power,
            corrected=config.corrected,
        )
        return SampledSoftmax(temperature, sampler, config.max_logits_bytes, per_position=config.per_position)
    return BinaryCrossEntropy(
        temperature,
        NegativeSampler(num_uniform=config.num_negatives),
        config.max_logits_bytes,
        calibration=config.calibration if isinstance(config, GBCEConfig) else 0.0,
        per_position=config.per_position,
    )
