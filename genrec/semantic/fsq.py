"""Finite scalar quantisation (Mentzer et al., arXiv 2309.15505): the middle of an autoencoder, rounded to a grid.

Each dimension is squeezed into a range of a few whole numbers and rounded; the gradient goes straight through the
rounding. The loss is the reconstruction alone: with no codebook, none can collapse. A level's codes are the grid points
of its own dimensions, written down as a codebook so that coding works as for the other tokenizers.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from genrec.config import FSQTokenizer
from genrec.semantic.tokenizers import ItemTokenizer
from genrec.semantic.tokenizers_rows import Progress, Rows, quiet
from genrec.semantic.tokenizers_training import start_equal, train_autoencoder


def fit_fsq(config: FSQTokenizer, rows: Rows, seed: int, progress: Progress = quiet) -> ItemTokenizer:
    """The trained tokenizer, the same on every worker of `rows`."""
    steps = [step for level in config.grid for step in level]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = ItemTokenizer([rows.dim, *config.hidden_dims, len(steps)], config.sizes, steps)
    for book, points in zip(tokenizer.books, grid_points(config.grid), strict=True):
        book.requires_grad_(False).copy_(points)
    tokenizer.to(rows.device)
    start_equal(tokenizer, rows)

    def loss_of(vectors: Tensor) -> Tensor:
        latent = tokenizer.embed(vectors)
        straight = latent + (latent.round() - latent).detach()
        error: Tensor = (vectors - tokenizer.decoder(straight)).square().sum(dim=1)
        return error.mean()

    train_autoencoder(tokenizer, loss_of, config, rows, seed, progress)
    return tokenizer.requires_grad_(False)


def grid_points(grid: Sequence[Sequence[int]]) -> list[Tensor]:
    """The codes of each level, [num_codes, num_dims]: whole numbers in its own dimensions, zeros in the others."""
    num_dims, first, books = sum(map(len, grid)), 0, []
    for level in grid:
        ranges = [range(-(steps // 2), steps - steps // 2) for steps in level]
        points = torch.tensor(list(itertools.product(*ranges)), dtype=torch.float32)
        book = torch.zeros(len(points), num_dims)
        book[:, first : first + len(level)] = points
        books.append(book)
        first += len(level)
    return books
