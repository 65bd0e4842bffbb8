"""The sentence encoder: BERT's arithmetic beside PyTorch's own layers, its folder's layout, and shards that stay."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_bert import DIM, HEADS, INNER, LAYERS, WORDS, bert_weights, write_encoder, write_tokenizer
from torch import Tensor, nn

from genrec.config import TextVectors
from genrec.errors import ConfigError, DataError
from genrec.semantic import text_encoder
from genrec.semantic.text_encoder import EncodedTexts, EncoderShape, SentenceEncoder, find_encoder, load_encoder
from genrec.semantic.tokenizers_rows import quiet


def reference(found: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Hidden states [num_tokens, dim] of one text by `nn.TransformerEncoderLayer`."""
    hidden = found["embeddings.word_embeddings.weight"][ids]
    hidden = hidden + found["embeddings.position_embeddings.weight"][: len(ids)]
    hidden = hidden + found["embeddings.token_type_embeddings.weight"][0]
    gain, shift = found["embeddings.LayerNorm.weight"], found["embeddings.LayerNorm.bias"]
    hidden = nn.functional.layer_norm(hidden, (DIM,), gain, shift, 1e-12)
    for number in range(LAYERS):
        layer = nn.TransformerEncoderLayer(DIM, HEADS, INNER, 0.0, "gelu", 1e-12, batch_first=True)
        name = f"encoder.layer.{number}"
        theirs = {"linear1": "intermediate.dense", "linear2": "output.dense", "norm1": "attention.output.LayerNorm"}
        theirs |= {"norm2": "output.LayerNorm", "self_attn.out_proj": "attention.output.dense"}
        state = {
            f"{mine}.{k}": found[f"{name}.{yours}.{k}"] for mine, yours in theirs.items() for k in ("weight", "bias")
        }
        for kind in ("weight", "bias"):
            parts = [found[f"{name}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
        layer.load_state_dict(state)
        layer.train()  # the other path of PyTorch's own is another algorithm; dropout is zero
        hidden = layer(hidden[None])[0]
    return hidden.detach()


def split(texts: list[str]) -> list[list[int]]:
    """Words to ids, as a BERT's tokenizer would."""
    return [[2, *(WORDS.index(word) for word in text.split()), 3] for text in texts]


def test_the_forward_pass_is_that_of_bert(tmp_path) -> None:
    shape = EncoderShape.read(write_encoder(tmp_path / "e"), 100)
    assert (shape.max_tokens, shape.pooling, shape.normalize) == (8, "mean", True)
    texts = ["red nail polish", "hair", "", "red hair oil nail"]
    found = SentenceEncoder(shape, bert_weights(), split).encode(texts, texts_per_batch=3)
    for row, text in enumerate(texts):
        if text:
            mean = reference(bert_weights(), split([text])[0]).mean(dim=0)
            expected = nn.functional.normalize(mean, dim=0).numpy()
            np.testing.assert_allclose(found[row], expected, atol=1e-5)
        else:
            assert not found[row].any()


@pytest.mark.parametrize("config", [{"model_type": "mpnet"}, {"position_embedding_type": "relative_key"}])
def test_another_kind_of_encoder_is_refused(tmp_path, config) -> None:
    with pytest.raises(ConfigError, match=r"is of a kind that genrec cannot run .* use semantic_ids\.vectors\.name"):
        EncoderShape.read(write_encoder(tmp_path / "e", **config), 100)


def test_where_an_encoder_is_looked_for(tmp_path, monkeypatch) -> None:
    folder = write_encoder(tmp_path / "site" / "some_encoder" / "model")
    (tmp_path / "site" / "some_encoder" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert find_encoder(str(folder)) == folder
    assert find_encoder("some-encoder") == folder
    with pytest.raises(ConfigError, match="is neither a folder with"):
        find_encoder("no-such-encoder")


def test_finished_shards_are_not_encoded_again(tmp_path, monkeypatch) -> None:
    encoder = write_encoder(tmp_path / "e")
    encoded: list[str] = []

    class Counting(SentenceEncoder):
        def encode(self, texts, texts_per_batch):
            encoded.extend(texts)
            return super().encode(texts, texts_per_batch)

    monkeypatch.setattr(
        text_encoder,
        "load_encoder",
        lambda folder, longest: Counting(EncoderShape.read(folder, longest), bert_weights(), split),
    )
    config = TextVectors(name="text", encoder=str(encoder), texts_per_shard=2)

    def rows(texts: list[str], first: int = 0) -> list[list[float]]:
        found = EncodedTexts.of(config, pa.array(texts, pa.large_string()), tmp_path / "shards", quiet)
        return [row for _, block in found.blocks(first) for row in block.tolist()]

    texts = ["red", "nail", "hair oil", "oil", "polish"]
    before = rows(texts)
    assert (len(before), encoded) == (5, texts)
    next((tmp_path / "shards").glob("0000000002-*.npy")).unlink()  # as if killed before it was written
    assert rows(texts) == before
    assert encoded[5:] == ["hair oil", "oil"]
    grown = rows([*texts, "red red"], first=5)
    assert len(grown) == 1 and encoded[7:] == ["polish", "red red"]
    shard = next((tmp_path / "shards").glob("0000000000-*.npy"))
    for content in (b"", shard.read_bytes()[:-1]):  # as if the machine went down before the disk had it all
        shard.write_bytes(content)
        with pytest.raises(DataError, match=r"0000000000-\w+\.npy is damaged .*delete it, and it is encoded again"):
            rows(texts)


def test_a_real_tokenizer_file_is_read(tmp_path) -> None:
    pytest.importorskip("tokenizers", reason="the extra `text` is not installed")
    folder = write_encoder(tmp_path / "e")
    write_tokenizer(folder)
    encoder = load_encoder(folder, 4)
    assert encoder.split(["red nail polish hair", "oil what"]) == [[2, 4, 5, 3], [2, 8, 1, 3]]
    expected = SentenceEncoder(encoder.shape, bert_weights(), split).encode(["red nail"], 1)
    np.testing.assert_allclose(encoder.encode(["red nail"], 1), expected, atol=1e-6)


def test_a_damaged_encoder_is_told_before_anything_is_encoded(tmp_path) -> None:
    pytest.importorskip("tokenizers", reason="the extra `text` is not installed")
    with pytest.raises(DataError, match=r"The encoder in .*empty cannot be read \(.*; copy its folder again"):
        load_encoder(write_encoder(tmp_path / "empty"), 4)  # a tokenizer.json without a model
    for name, config in (("deep", {"num_hidden_layers": LAYERS + 1}), ("wide", {"hidden_size": 2 * DIM})):
        folder = write_encoder(tmp_path / name, **config)
        write_tokenizer(folder)
        with pytest.raises(DataError, match=rf"The encoder in .*{name} cannot be read"):
            load_encoder(folder, 4)
    for told in ("[]", "{}"):
        (folder / "config.json").write_text(told)
        with pytest.raises(DataError, match=r"wide does not say its shape"):
            EncoderShape.read(folder, 4)
