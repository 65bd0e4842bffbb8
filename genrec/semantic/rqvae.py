"""RQ-VAE as TIGER trains it (arXiv 2305.05065, section 3.1, after Zeghidour et al., 2021).

    loss = |x - x^|^2 + sum over levels of |sg[r_l] - e_l|^2 + beta |r_l - sg[e_l]|^2

with r_l what is left over at level l, e_l its nearest code and sg what no gradient goes through. The decoder's gradient
goes straight through to the encoder. Codebooks start as the k-means centres of what the first batch leaves over at each
level, else most codes are never used.

A code that is no vector's nearest gets no gradient, so it stays where it is for good. The paper does nothing about
that; `revive_every` does, as k-means does: such codes start again from a sample, as centres that k-means++ adds to the
living ones, and the optimizer forgets what it knew of them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from genrec.config import RQVAETokenizer
from genrec.semantic.rkmeans import plus_plus
from genrec.semantic.tokenizers import ItemTokenizer, squared_distances
from genrec.semantic.tokenizers_rows import Progress, Rows, quiet
from genrec.semantic.tokenizers_training import start_equal, train_autoencoder

START_PASSES = 10


def fit_rqvae(config: RQVAETokenizer, rows: Rows, seed: int, progress: Progress = quiet) -> ItemTokenizer:
    """The trained tokenizer, the same on every worker of `rows`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = ItemTokenizer([rows.dim, *config.hidden_dims, config.latent_dim], config.sizes).to(rows.device)
    start_equal(tokenizer, rows)
    _start_codebooks(tokenizer, rows.sample(_sample_size(config), np.random.default_rng(seed)), seed)
    train_rqvae(tokenizer, config, rows, seed, progress)
    return tokenizer.requires_grad_(False)


def train_rqvae(
    tokenizer: ItemTokenizer, config: RQVAETokenizer, rows: Rows, seed: int, progress: Progress = quiet
) -> None:
    """Trains a tokenizer whose codebooks have started, in place."""
    revival = None if config.revive_every is None else _Revival(tokenizer, config, rows, seed)

    def loss_of(vectors: Tensor) -> Tensor:
        return rqvae_loss(tokenizer, vectors, config.beta, () if revival is None else revival.counts)

    train_autoencoder(tokenizer, loss_of, config, rows, seed, progress, revival)


def rqvae_loss(tokenizer: ItemTokenizer, vectors: Tensor, beta: float, counts: Sequence[Tensor] = ()) -> Tensor:
    """The loss of vectors [num_rows, dim], a mean over rows.

    To `counts`, where they are given, [size] for each level, is added how many of the vectors pick each code.
    """
    latent = tokenizer.embed(vectors)
    left, total = latent, torch.zeros(len(vectors), device=vectors.device)
    picked_sum = torch.zeros_like(latent)
    for level, book in enumerate(tokenizer.books):
        codes = tokenizer.costs(left, level).argmin(dim=1)
        if counts:
            counts[level].add_(torch.bincount(codes, minlength=len(book)))
        picked = book[codes]
        total = total + (left.detach() - picked).square().sum(dim=1)
        total = total + beta * (left - picked.detach()).square().sum(dim=1)
        left = left - picked.detach()
        picked_sum = picked_sum + picked
    straight = latent + (picked_sum - latent).detach()
    total = total + (vectors - tokenizer.decoder(straight)).square().sum(dim=1)
    mean: Tensor = total.mean()
    return mean


class _Revival:
    """Counts what is picked, and lets the codes that nothing picked start again; the same on every worker."""

    def __init__(self, tokenizer: ItemTokenizer, config: RQVAETokenizer, rows: Rows, seed: int) -> None:
        self.tokenizer, self.config, self.rows, self.seed = tokenizer, config, rows, seed
        self.counts = [torch.zeros(size, dtype=torch.int64, device=rows.device) for size in config.sizes]

    @torch.no_grad()
    def __call__(self, num_passes: int, optimizer: torch.optim.Optimizer) -> None:
        """To be called after every pass."""
        if self.config.revive_every is None or num_passes % self.config.revive_every:
            return
        is_used = [self.rows.sum(counts.clone()) > 0 for counts in self.counts]
        for counts in self.counts:
            counts.zero_()
        if all(bool(used.all()) for used in is_used):
            return
        rng = np.random.default_rng([self.seed, num_passes])
        left = self.tokenizer.embed(self.rows.sample(_sample_size(self.config), rng))
        for level, (book, used) in enumerate(zip(self.tokenizer.books, is_used, strict=True)):
            book[~used] = plus_plus(left, book[used], len(book), rng)[int(used.sum()) :]
            for value in optimizer.state[book].values():
                if isinstance(value, Tensor) and value.shape == book.shape:
                    value[~used] = 0
            left = left - book[self.tokenizer.costs(left, level).argmin(dim=1)]


def _sample_size(config: RQVAETokenizer) -> int:
    return max(config.rows_per_batch, max(config.sizes))


@torch.no_grad()
def _start_codebooks(tokenizer: ItemTokenizer, vectors: Tensor, seed: int) -> None:
    left = tokenizer.embed(vectors)
    for level, book in enumerate(tokenizer.books):
        rng = np.random.default_rng([seed, level])
        centres = plus_plus(left, left[:0], len(book), rng)
        for _ in range(START_PASSES):
            picked = squared_distances(left, centres).argmin(dim=1)
            sums = torch.zeros_like(centres).index_add_(0, picked, left)
            counts = torch.bincount(picked, minlength=len(centres))
            alive = counts > 0
            centres = plus_plus(left, sums[alive] / counts[alive, None], len(book), rng)
        book.copy_(centres)
        left = left - book[tokenizer.costs(left, level).argmin(dim=1)]
