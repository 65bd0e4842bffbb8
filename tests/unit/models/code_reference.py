"""Helpers of the tests of models that write codes: small maps, configs, and a transcription of TIGER."""

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrec.config import ExperimentConfig, config_from_dict
from genrec.data.batch import Batch
from genrec.models.build import build_model
from genrec.models.code_model import CodeModel
from genrec.models.tiger import Tiger
from genrec.semantic.ids import SemanticIds

NUM_ITEMS = 50
SIZES = (4, 5, 6)

SMALL: dict[str, Any] = {"dim": 16, "num_layers": 2, "num_heads": 2}
CODES: dict[str, Any] = {"name": "code-decoder", **SMALL, "num_key_value_heads": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "codes": CODES,
    "codes-separator": CODES | {"separator": True},
    "items": CODES | {"history": "items", "level_layers": 2},
    "items-ids": CODES | {"history": "items", "item_ids": True},
    "tiger": {"name": "tiger", **SMALL, "head_dim": 6, "feed_forward_dim": 20, "max_history": 30},
    "tiger-short": {"name": "tiger", **SMALL, "head_dim": 6, "feed_forward_dim": 20, "max_history": 5},
}


def some_ids(num_items: int = NUM_ITEMS, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> SemanticIds:
    """A map of distinct random tuples."""
    chosen = np.random.default_rng(seed).permutation(math.prod(sizes))[:num_items]
    codes = np.full((num_items + 1, len(sizes)), -1, dtype=np.int32)
    codes[1:] = np.stack(np.unravel_index(chosen, sizes), axis=1)
    return SemanticIds(codes, sizes, "items")


def code_experiment(model: dict[str, Any], **sections: Any) -> ExperimentConfig:
    """A config with this model."""
    base: dict[str, Any] = {
        "name": "test",
        "data": {"source": {"name": "synthetic"}, "prepared": "unused"},
        "sequence": {"max_length": 80},
        "semantic_ids": {"path": "unused"},
        "model": model,
        "loss": {"name": "full-softmax"},
        "train": {"max_steps": 1},
    }
    return config_from_dict(base | sections)


def code_model(variant: str, ids: SemanticIds | None = None, **sections: Any) -> CodeModel:
    """A variant in fp32 with weights large enough that every term counts."""
    torch.manual_seed(0)
    ids = ids or some_ids()
    model = build_model(code_experiment(VARIANTS[variant], **sections), ids.num_items, semantic_ids=ids)
    assert isinstance(model, CodeModel)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("table.weight") or "heads_of_levels" in name:
                weight.mul_(10 if weight.std() < 0.1 else 1)
            else:
                weight.add_(0.1 * torch.randn_like(weight))
    return model


def one_target(batch: Batch, position: int) -> Batch:
    """The batch with a loss at one position only; what comes next in a window stays what it is."""
    targets = torch.full_like(batch.targets, -1)
    targets[position] = batch.targets[position]
    return dataclasses.replace(batch, targets=targets)


def literal_bucket(distance: int, *, both_ways: bool) -> int:
    """T5's bucket of key place - query place, for one number, as its paper's code has it (32 buckets, up to 128)."""
    bucket, num_buckets, n = 0, 32, -distance
    if both_ways:
        num_buckets //= 2
        bucket = num_buckets if n < 0 else 0
        n = abs(n)
    else:
        n = max(n, 0)
    exact = num_buckets // 2
    if n < exact:
        return bucket + n
    far = exact + int(math.log(n / exact) / math.log(128 / exact) * (num_buckets - exact))
    return bucket + min(far, num_buckets - 1)


def literal_tiger(model: Tiger, items: list[int], target: int) -> Tensor:
    """Log-probability of the target's code on each level, [num_levels]: one history, loops and plain matrices."""
    weights = dict(model.named_parameters())
    table = weights["code_table.weight"]
    num_heads = model.num_heads

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.weight"]

    def biases(rows: int, name: str, *, both_ways: bool) -> Tensor:
        of_bucket = weights[f"{name}.table.weight"]
        grid = [[of_bucket[literal_bucket(j - i, both_ways=both_ways)] for j in range(rows)] for i in range(rows)]
        bias = torch.stack([torch.stack(row) for row in grid]).permute(2, 0, 1)
        return bias if both_ways else bias + torch.full((rows, rows), -torch.inf).triu(1)

    def attention(x: Tensor, memory: Tensor, name: str, bias: Tensor | None) -> Tensor:
        q = norm(x, f"{name}.norm") @ weights[f"{name}.query.weight"].T
        k, v = memory @ weights[f"{name}.key.weight"].T, memory @ weights[f"{name}.value.weight"].T
        width = q.shape[1] // num_heads
        heads = []
        for head in range(num_heads):
            columns = slice(head * width, (head + 1) * width)
            scores = q[:, columns] @ k[:, columns].T
            heads.append((scores if bias is None else scores + bias[head]).softmax(dim=1) @ v[:, columns])
        return x + torch.cat(heads, dim=1) @ weights[f"{name}.output.weight"].T

    def feed_forward(x: Tensor, name: str) -> Tensor:
        inner = torch.relu(norm(x, f"{name}.norm") @ weights[f"{name}.expand.weight"].T)
        return x + inner @ weights[f"{name}.contract.weight"].T

    codes = model.semantic_ids.codes.tolist()
    firsts = [1 + sum(model.sizes[:level]) for level in range(len(model.sizes))]
    read = [first + c for item in items[-model.max_history :] for first, c in zip(firsts, codes[item], strict=True)]
    x = table[read]
    bias = biases(len(read), "encoder_bias", both_ways=True)
    for layer in range(len(model.encoder)):
        x = attention(x, norm(x, f"encoder.{layer}.attention.norm"), f"encoder.{layer}.attention", bias)
        x = feed_forward(x, f"encoder.{layer}.feed_forward")
    encoded = norm(x, "encoder_norm")
    written = [first + c for first, c in zip(firsts, codes[target], strict=True)]
    x = table[[sum(model.sizes) + 1, *written[:-1]]]
    bias = biases(len(written), "decoder_bias", both_ways=False)
    for layer in range(len(model.decoder)):
        x = attention(x, norm(x, f"decoder.{layer}.attention.norm"), f"decoder.{layer}.attention", bias)
        x = attention(x, encoded, f"decoder.{layer}.cross_attention", None)
        x = feed_forward(x, f"decoder.{layer}.feed_forward")
    scores = norm(x, "decoder_norm") * x.shape[1] ** -0.5 @ table[1 : sum(model.sizes) + 1].T
    return scores.log_softmax(dim=1)[torch.arange(len(written)), torch.tensor(written) - 1]
