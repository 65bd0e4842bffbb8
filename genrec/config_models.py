"""The `model.` settings: one section for each kind of model. `genrec.config` has all the others."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from genrec.config_data import Section, kind_by_default


class _TransformerConfig(Section):
    """What SASRec and eSASRec are told alike."""

    name: str
    dim: int = Field(64, ge=1, description="width of item and hidden vectors")
    num_layers: int = Field(2, ge=1, description="transformer blocks")
    num_heads: int = Field(2, ge=1, description="attention heads; must divide dim")
    dropout: float = Field(0.2, ge=0, lt=1, description="on embeddings, attention weights and feed-forward")
    l2_normalize: bool = Field(False, description="cosine scores: outputs and items have length 1")

    @model_validator(mode="after")
    def _heads(self) -> "_TransformerConfig":
        _check_heads(self.dim, self.num_heads)
        return self


class SASRecConfig(_TransformerConfig):
    """Self-attentive sequential recommendation, pre-norm (Kang and McAuley, 2018)."""

    name: Literal["sasrec"]
    feed_forward_dim: int | None = Field(None, ge=1, description="width inside the feed-forward part; null is dim")
    activation: Literal["relu", "gelu"] = Field("relu", description="non-linearity of the feed-forward part")


class ESASRecConfig(_TransformerConfig):
    """SASRec with LiGR blocks: gated residual paths and a SwiGLU feed-forward part (RecTools, 2025)."""

    name: Literal["esasrec"]
    feed_forward_dim: int | None = Field(None, ge=1, description="width inside the feed-forward part; null is 4 dim")


class SiluAttentionConfig(Section):
    """Weights SiLU(q k^T + bias) / n, as published."""

    name: Literal["silu"] = "silu"
    divisor: Literal["max-length", "length"] = Field(
        "max-length", description="n: sequence.max_length, as published, or the events up to the query"
    )
    scale: bool = Field(False, description="q k^T is divided by sqrt(query_dim), as in the production layer")


class SoftmaxAttentionConfig(Section):
    """Weights softmax((q k^T + bias) / sqrt(query_dim))."""

    name: Literal["softmax"]


HSTUAttention = Annotated[
    SiluAttentionConfig | SoftmaxAttentionConfig, Field(discriminator="name"), kind_by_default("silu")
]


class HSTUConfig(Section):
    """Hierarchical sequential transduction units (Zhai et al., 2024)."""

    name: Literal["hstu"]
    dim: int = Field(50, ge=1, description="width of item and hidden vectors")
    num_layers: int = Field(2, ge=1, description="HSTU layers")
    num_heads: int = Field(1, ge=1, description="attention heads")
    query_dim: int = Field(50, ge=1, description="width of queries and keys of one head")
    value_dim: int = Field(50, ge=1, description="width of values and gates of one head")
    dropout: float = Field(0.2, ge=0, lt=1, description="on embeddings and before each output projection")
    attention: HSTUAttention = Field(SiluAttentionConfig(), description="how scores become weights")
    position_bias: bool = Field(True, description="relative-position bias inside attention")
    time_bias: bool = Field(True, description="time-gap bias inside attention")
    query_time: bool = Field(
        True,
        description="the time bias counts from the time of the predicted event, as published; false: from the event "
        "before it",
    )
    concat_ua: bool = Field(False, description="the output projection reads u, norm(a v) and their product")
    l2_normalize: bool = Field(True, description="cosine scores: outputs and items have length 1")


class DecoderLayersConfig(Section):
    """What `decoder` and `code-decoder` are told alike."""

    name: str
    dim: int = Field(256, ge=1, description="width of item and hidden vectors")
    num_layers: int = Field(4, ge=1, description="transformer blocks")
    num_heads: int = Field(4, ge=1, description="attention heads; dim / num_heads must be even")
    num_key_value_heads: int | None = Field(
        None, ge=1, description="heads of keys and values; must divide num_heads, null is num_heads"
    )
    feed_forward_dim: int | None = Field(
        None, ge=1, description="width inside the feed-forward part; null is 8/3 dim, up to a multiple of 64"
    )
    rope_base: float = Field(10_000.0, gt=1, description="base of the rotary frequencies")
    dropout: float = Field(0.2, ge=0, lt=1, description="on embeddings, attention weights and both parts' outputs")
    recompute: Literal["none", "block"] = Field(
        "none", description="block: activations inside a block are computed again in the backward pass, not kept"
    )

    @model_validator(mode="after")
    def _heads(self) -> "DecoderLayersConfig":
        _check_heads(self.dim, self.num_heads)
        if self.dim // self.num_heads % 2:
            raise ValueError(
                f"dim / num_heads ({self.dim} / {self.num_heads} = {self.dim // self.num_heads}) must be even, because "
                f"rotary positions turn pairs; use dim {2 * self.dim} or other num_heads"
            )
        if self.num_heads % self.key_value_heads:
            raise ValueError(
                f"num_key_value_heads ({self.num_key_value_heads}) must divide num_heads ({self.num_heads}); "
                "use 1, num_heads, or a divisor between"
            )
        return self

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values, whether they were given or not."""
        return self.num_key_value_heads or self.num_heads


class DecoderConfig(DecoderLayersConfig):
    """A plain decoder: RMSNorm, rotary positions, SwiGLU, grouped-query attention, no biases."""

    name: Literal["decoder"]
    l2_normalize: bool = Field(False, description="cosine scores: outputs and items have length 1")


class CodeDecoderConfig(DecoderLayersConfig):
    """A decoder that reads and writes the codes of items (`semantic_ids`)."""

    name: Literal["code-decoder"]
    history: Literal["codes", "items"] = Field(
        "codes", description="what the history is read as: a token for every code, or one for every item"
    )
    separator: bool = Field(False, description="history: codes: a token after each item")
    item_ids: bool = Field(False, description="history: items: a learned vector of the item's id is added to its codes")
    level_layers: int | None = Field(
        None, ge=1, description="history: items: blocks that write an item's codes, one after another; null is 1"
    )

    @model_validator(mode="after")
    def _of_the_history(self) -> "CodeDecoderConfig":
        other = {"codes": ("item_ids", "level_layers"), "items": ("separator",)}[self.history]
        idle = [name for name in other if getattr(self, name) not in (None, False)]
        if idle:
            raise ValueError(
                f"{' and '.join(idle)} cannot be set with history: {self.history}; leave it out, or use history: "
                f"{'items' if self.history == 'codes' else 'codes'}"
            )
        return self


class TigerConfig(Section):
    """TIGER: a T5 encoder-decoder from the codes of a history to those of the next item (Rajput et al., 2023)."""

    name: Literal["tiger"]
    dim: int = Field(128, ge=1, description="width of embeddings and hidden vectors")
    num_layers: int = Field(4, ge=1, description="blocks of the encoder, and of the decoder")
    num_heads: int = Field(6, ge=1, description="attention heads")
    head_dim: int = Field(64, ge=1, description="width of queries, keys and values of one head")
    feed_forward_dim: int = Field(1_024, ge=1, description="width inside the feed-forward part")
    dropout: float = Field(0.1, ge=0, lt=1, description="on embeddings, attention weights, and every part's output")
    max_history: int = Field(20, ge=1, description="newest items before the target that the encoder reads")


def _check_heads(dim: int, num_heads: int) -> None:
    if dim % num_heads:
        raise ValueError(
            f"dim ({dim}) must be divisible by num_heads ({num_heads}); "
            f"use dim {(dim // num_heads + 1) * num_heads} or num_heads 1"
        )


Model = Annotated[
    SASRecConfig | ESASRecConfig | HSTUConfig | DecoderConfig | CodeDecoderConfig | TigerConfig,
    Field(discriminator="name"),
]

CODE_MODELS = (CodeDecoderConfig, TigerConfig)
"""Models that write the codes of the next item, and so need `semantic_ids`."""
