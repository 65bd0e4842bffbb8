"""RQ-VAE as TIGER trains it (arXiv 2305.05065, section 3.1, after Zeghidour et al., 2021).

    loss = |x - x^|^2 + sum over levels of |sg[r_l] - e_l|^2 + beta |r_l - sg[e_l]|^2

with r_l what is left over at level l, e_l its nearest code and sg what no gradient goes through. The decoder's gradient
goes straight through to the encoder. Codebooks start as the k-means centres of what the first batch leaves over at each
level, else most codes are never used.
"""

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
    _start_codebooks(
        tokenizer, rows.sample(max(config.rows_per_batch, max(config.sizes)), np.random.default_rng(seed)), seed
    )

    def loss_of(vectors: Tensor) -> Tensor:
        return rqvae_loss(tokenizer, vectors, config.beta)

    train_autoencoder(tokenizer, loss_of, config, rows, seed, progress)
    return tokenizer.requires_grad_(False)


def rqvae_loss(tokenizer: ItemTokenizer, vectors: Tensor, beta: float) -> Tensor:
    """The loss of vectors [num_rows, dim], a mean over rows."""
    latent = tokenizer.embed(vectors)
    left, total = latent, torch.zeros(len(vectors), device=vectors.device)
    picked_sum = torch.zeros_like(latent)
    for level, book in enumerate(tokenizer.books):
        picked = book[tokenizer.costs(left, level).argmin(dim=1)]
        total = total + (left.detach() - picked).square().sum(dim=1)
        total = total + beta * (left - picked.detach()).square().sum(dim=1)
        left = left - picked.detach()
        picked_sum = picked_sum + picked
    straight = latent + (picked_sum - latent).detach()
    total = total + (vectors - tokenizer.decoder(straight)).square().sum(dim=1)
    mean: Tensor = total.mean()
    return mean


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
