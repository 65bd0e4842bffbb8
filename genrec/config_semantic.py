"""The `semantic_ids.` settings: from item vectors to a short tuple of codes for every item (docs/semantic_ids.md).

`genrec tokenize` reads all of them; training and serving read the finished map at `path` only.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from genrec.config_data import Section, kind_by_default


class ItemVectorsOfSet(Section):
    """The item vectors of the prepared set: those of `data.item_vectors`."""

    name: Literal["item-vectors"]
    normalize: bool = Field(True, description="divide each vector by its length")


class VectorFile(Section):
    """Vectors that are ready: a .npy file, a row an item."""

    name: Literal["file"]
    path: str = Field(description=".npy file [num_rows, dim]; $VARIABLES are expanded")
    ids: str | None = Field(None, description="text file with the item id of each row, one a line; null: first_id")
    first_id: int = Field(0, description="without ids: the item id of row 0; row 1 is the next number, and so on")
    normalize: bool = Field(True, description="divide each vector by its length")


class ExportVectors(Section):
    """Collaborative vectors: the item table of a trained model."""

    name: Literal["export"]
    path: str = Field(description="run directory or export folder; items are matched by their ids")
    normalize: bool = Field(True, description="divide each vector by its length")


class TfidfVectors(Section):
    """TF-IDF of the items' words, reduced by a truncated singular value decomposition. Needs no model."""

    name: Literal["tfidf"]
    path: str | None = Field(
        None, description="CSV, TSV, Parquet or JSON (id: text) with the items' texts; null: titles of the prepared set"
    )
    item: str = Field("item", description="column with the item id, as the log has it")
    columns: tuple[str, ...] = Field(("title",), min_length=1, description="columns with text, joined by spaces")
    dim: int = Field(64, ge=2, description="numbers in a vector")
    min_items: int = Field(2, ge=1, description="words that fewer items have are left out")
    max_words: int = Field(50_000, ge=2, description="of the others, those that the most items have are kept")
    normalize: bool = Field(True, description="divide each vector by its length")


class TextVectors(Section):
    """Vectors of a sentence encoder that lies on this machine; no download. Needs `pip install genrec[text]`."""

    name: Literal["text"]
    encoder: str = Field(
        description="folder in the layout of sentence-transformers (BERT), or an installed package that holds one"
    )
    path: str | None = Field(
        None, description="CSV, TSV, Parquet or JSON (id: text) with the items' texts; null: titles of the prepared set"
    )
    item: str = Field("item", description="column with the item id, as the log has it")
    columns: tuple[str, ...] = Field(("title",), min_length=1, description="columns with text, joined by spaces")
    max_tokens: int = Field(128, ge=3, description="a longer text is cut; the encoder's own limit counts too")
    texts_per_batch: int = Field(64, ge=1, description="texts that go through the encoder at a time")
    texts_per_shard: int = Field(4_096, ge=1, description="texts whose vectors are a file: what a kill can cost")
    workers: int = Field(1, ge=1, description="Ray actors that encode; 1 is this process, without Ray")
    normalize: bool = Field(True, description="divide each vector by its length")


Vectors = Annotated[
    ItemVectorsOfSet | VectorFile | ExportVectors | TfidfVectors | TextVectors, Field(discriminator="name")
]

MAX_CODES = 65_536


def _checked_sizes(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if any(size < 2 or size > MAX_CODES for size in sizes):
        raise ValueError(f"sizes {list(sizes)} must each be 2 to {MAX_CODES}; 256 is usual")
    return sizes


Sizes = Annotated[tuple[int, ...], AfterValidator(_checked_sizes)]
"""Codes of each level."""


class RKMeansTokenizer(Section):
    """Residual k-means: each level clusters what the levels before it have left over."""

    name: Literal["rkmeans"]
    sizes: Sizes = Field((256, 256, 256), min_length=1, description="codes of each level")
    iterations: int = Field(25, ge=1, description="passes over the vectors for each level, after the k-means++ start")
    balance: float = Field(
        0.0, ge=0, description="above 0, full codes cost more, so that codes get equal shares of the items; 1 is strong"
    )
    rows_per_batch: int = Field(16_384, ge=1, description="vectors in memory at a time")
    max_train_rows: int = Field(1_000_000, ge=2, description="of more vectors, a seeded sample trains the codes")


class RQVAETokenizer(Section):
    """RQ-VAE: an autoencoder whose middle is quantised level by level. The defaults are TIGER's (arXiv 2305.05065)."""

    name: Literal["rqvae"]
    sizes: Sizes = Field((256, 256, 256), min_length=1, description="codes of each level")
    hidden_dims: tuple[int, ...] = Field((512, 256, 128), description="layers of the encoder; the decoder mirrors them")
    latent_dim: int = Field(32, ge=1, description="numbers in the middle, which are quantised")
    beta: float = Field(0.25, ge=0, description="weight of the commitment loss")
    optimizer: Literal["adagrad", "adamw"] = Field("adagrad", description="adamw is more forgiving, at an lr of 0.001")
    lr: float = Field(0.4, gt=0, description="learning rate")
    rows_per_batch: int = Field(1_024, ge=1, description="vectors of a step")
    epochs: int = Field(20_000, ge=1, description="passes over the vectors")
    revive_every: int | None = Field(
        None,
        ge=1,
        description="after so many passes, codes that no vector picked in them start again where vectors are far from "
        "all codes; null: never, as published",
    )


class FSQTokenizer(Section):
    """Finite scalar quantisation (arXiv 2309.15505): an autoencoder whose middle is rounded to a grid; no codebook."""

    name: Literal["fsq"]
    grid: tuple[tuple[int, ...], ...] = Field(
        ((8, 6, 5), (8, 6, 5), (8, 6, 5)),
        min_length=1,
        description="for each level, steps of its dimensions; [8, 6, 5] makes 240 codes",
    )
    hidden_dims: tuple[int, ...] = Field((256, 128), description="layers of the encoder; the decoder mirrors them")
    optimizer: Literal["adagrad", "adamw"] = Field("adamw", description="how weights follow gradients")
    lr: float = Field(0.001, gt=0, description="learning rate")
    rows_per_batch: int = Field(1_024, ge=1, description="vectors of a step")
    epochs: int = Field(300, ge=1, description="passes over the vectors")

    @model_validator(mode="after")
    def _sizes(self) -> "FSQTokenizer":
        if any(not level or min(level) < 2 for level in self.grid):
            raise ValueError(f"grid {[list(level) for level in self.grid]} needs at least 2 steps everywhere; add some")
        _checked_sizes(self.sizes)
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        sizes = []
        for level in self.grid:
            size = 1
            for steps in level:
                size *= steps
            sizes.append(size)
        return tuple(sizes)


class PublishedTokenizer(Section):
    """Codes that somebody has made already: a JSON file, id: [code, ...]; words around a number are left out."""

    name: Literal["published"]
    path: str = Field(description="JSON file, `.gz` as it is; $VARIABLES are expanded")
    key_offset: int = Field(0, description="added to an item's id, a whole number, to get its key in the file")
    levels: int | None = Field(None, ge=1, description="codes of each item that are read; null is all")


Tokenizer = Annotated[
    RKMeansTokenizer | RQVAETokenizer | FSQTokenizer | PublishedTokenizer,
    Field(discriminator="name"),
    kind_by_default("rkmeans"),
]


class HealthConfig(Section):
    """What a map must reach before it is written; null asks for nothing."""

    max_collision_rate: float | None = Field(0.5, ge=0, le=1, description="share of items with another item's codes")
    max_bucket: int | None = Field(None, ge=1, description="items with one and the same codes")
    min_code_usage: float | None = Field(0.8, ge=0, le=1, description="share of a level's codes that an item has")
    min_entropy: float | None = Field(
        0.5, ge=0, le=1, description="entropy of a level's codes over that of equal shares"
    )
    max_reconstruction_error: float | None = Field(
        None, ge=0, description="squared error of the codes over the vectors' variance"
    )
    min_neighbours: float | None = Field(
        None, ge=0, le=1, description="share of an item's nearest items that are nearest by their codes too"
    )
    min_purity: float | None = Field(
        None, ge=0, le=1, description="share of items that have the most common type of their first code's items"
    )
    max_without_vector: float = Field(0.05, ge=0, le=1, description="share of items that have no vector")
    num_neighbours: int = Field(10, ge=1, description="nearest items that are compared")
    sample_items: int = Field(10_000, ge=2, description="items among which nearest ones are looked for")


def _folder(path: str) -> str:
    if "://" in path:
        raise ValueError(
            f"path {path} is a URI, and a map of codes is a folder that all machines of a run see; every export holds "
            "its own copy"
        )
    return path


class SemanticIdsConfig(Section):
    """A tuple of codes for every item; models over codes read it, `genrec tokenize` makes it."""

    path: Annotated[str, AfterValidator(_folder)] = Field(
        description="folder of the map: codes, tokenizer and health; made by `genrec tokenize`"
    )
    vectors: Vectors = Field(
        TfidfVectors(name="tfidf"), description="what the codes are made of: items alike have vectors alike"
    )
    tokenizer: Tokenizer = Field(RKMeansTokenizer(name="rkmeans"), description="how vectors become codes")
    collisions: Literal["dedup", "nearest"] = Field(
        "dedup",
        description="items with the same codes: dedup numbers them on a further level, nearest moves all but one to "
        "the nearest free code",
    )
    health: HealthConfig = Field(HealthConfig(), description="what a map must reach before it is written")
