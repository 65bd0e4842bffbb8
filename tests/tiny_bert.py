"""A BERT of two small layers with random weights, in the folder layout of sentence-transformers."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "nail", "polish", "hair", "oil", "soap"]
"""The vocabulary; a word's place is its id."""
DIM, HEADS, LAYERS, INNER = 8, 2, 2, 12


def bert_weights(seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a BERT, by the names of its files."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), DIM),
        "embeddings.position_embeddings.weight": (16, DIM),
        "embeddings.token_type_embeddings.weight": (2, DIM),
        "embeddings.LayerNorm.weight": (DIM,),
        "embeddings.LayerNorm.bias": (DIM,),
    }
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        for part, wide, narrow in (
            *((f"attention.self.{part}", DIM, DIM) for part in ("query", "key", "value")),
            ("attention.output.dense", DIM, DIM),
            ("intermediate.dense", INNER, DIM),
            ("output.dense", DIM, INNER),
        ):
            shapes |= {f"{name}.{part}.weight": (wide, narrow), f"{name}.{part}.bias": (wide,)}
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{name}.{part}.weight": (DIM,), f"{name}.{part}.bias": (DIM,)}
    return {name: torch.randn(shape, generator=generator) * 0.5 for name, shape in shapes.items()}


def write_encoder(folder: Path, **config: object) -> Path:
    """The folder of the BERT, whose tokenizer's file is empty: see `write_tokenizer`."""
    (folder / "1_Pooling").mkdir(parents=True)
    told = {
        "model_type": "bert", "hidden_act": "gelu", "hidden_size": DIM, "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS, "max_position_embeddings": 16, "layer_norm_eps": 1e-12,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(told | config))
    pooling = {"word_embedding_dimension": DIM, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    modules = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Normalize")]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}))
    save_file(bert_weights(), folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def write_tokenizer(folder: Path) -> None:
    """The file of a tokenizer over `WORDS` into the folder of an encoder. It needs the extra `text`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
