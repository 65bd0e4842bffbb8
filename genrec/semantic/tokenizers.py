"""A trained tokenizer: vectors to tuples of codes and back. How each kind is trained is in a file of its own.

All kinds are the same thing in the end: an encoder into some space (for k-means the vectors themselves), and in that
space codebooks, one a level. A level picks the code nearest to what the levels before it have left over:

    r_0 = encoder(x)      c_l = argmin_k |r_l - book_l[k]|^2 + price_l[k]      r_(l+1) = r_l - book_l[c_l]
    x^  = decoder(sum of the picked codes)

A grid (FSQ) is such codebooks too: each level's points lie in dimensions of their own, so the nearest point of all
levels together is found level by level. Prices are zero but for balanced k-means, where full codes cost more.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genrec.errors import DataError

WEIGHTS_FILE = "tokenizer.safetensors"
SHAPE_FILE = "tokenizer.json"
CACHE_BYTES = 2**21  # of rows that several passes look at: a part of what a CPU core caches for itself
MIN_STRETCH = 256


class Bounded(nn.Module):
    """Squeezes dimension i into the range of `steps[i]` whole numbers (FSQ, arXiv 2309.15505, section 3.1)."""

    radius: Tensor
    shift: Tensor
    offset: Tensor

    def __init__(self, steps: Sequence[int], slack: float = 1e-3) -> None:
        super().__init__()
        radius = (torch.tensor(steps, dtype=torch.float32) - 1) * (1 + slack) / 2
        offset = torch.tensor([0.5 if step % 2 == 0 else 0.0 for step in steps])
        self.register_buffer("radius", radius, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("shift", torch.atanh(offset / radius), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """The same shape, dimension i between -steps[i] // 2 and (steps[i] - 1) // 2, give or take the slack."""
        bounded: Tensor = torch.tanh(values + self.shift) * self.radius - self.offset
        return bounded


def mlp(dims: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them, from `dims[0]` to `dims[-1]` numbers."""
    layers: list[nn.Module] = []
    for place, (narrow, wide) in enumerate(itertools.pairwise(dims)):
        layers += [nn.ReLU()] * (place > 0) + [nn.Linear(narrow, wide)]
    return nn.Sequential(*layers)


class ItemTokenizer(nn.Module):
    """Codebooks, and the way into their space and back.

    `dims` are the widths of the encoder's layers, from the vectors' to the codebooks'; one number means none.
    `sizes` are the codes of each level; `steps`, of a grid, bounds what the encoder gives. Weights are random.
    """

    def __init__(self, dims: Sequence[int], sizes: Sequence[int], steps: Sequence[int] = ()) -> None:
        super().__init__()
        self.dims, self.steps = tuple(dims), tuple(steps)
        self.encoder: nn.Module = mlp(dims) if len(dims) > 1 else nn.Identity()
        self.bound: nn.Module = Bounded(steps) if steps else nn.Identity()
        self.decoder: nn.Module = mlp(tuple(reversed(dims))) if len(dims) > 1 else nn.Identity()
        self.books = nn.ParameterList([nn.Parameter(torch.randn(size, dims[-1])) for size in sizes])
        self.prices = nn.ParameterList([nn.Parameter(torch.zeros(size), requires_grad=False) for size in sizes])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        return tuple(len(book) for book in self.books)

    def embed(self, vectors: Tensor) -> Tensor:
        """The vectors [num_rows, dim] in the space of the codebooks, [num_rows, latent_dim]."""
        latent: Tensor = self.bound(self.encoder(vectors))
        return latent

    @torch.no_grad()
    def encode(self, vectors: Tensor) -> Tensor:
        """The codes of vectors [num_rows, dim]: int64 [num_rows, num_levels]."""
        return torch.cat([self._encode(piece) for piece in in_cache(self.embed(vectors))])

    def _encode(self, left: Tensor) -> Tensor:
        codes = []
        for level, book in enumerate(self.books):
            codes.append(self.costs(left, level).argmin(dim=1))
            left = left - book[codes[-1]]
        return torch.stack(codes, dim=1)

    def costs(self, left: Tensor, level: int) -> Tensor:
        """What each code of a level costs for what is left over [num_rows, latent_dim]: [num_rows, size]."""
        costs: Tensor = squared_distances(left, self.books[level]) + self.prices[level]
        return costs

    @torch.no_grad()
    def left_over(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """What the first levels leave of vectors [num_rows, dim], given their codes [num_rows, <= num_levels]."""
        left = self.embed(vectors)
        for level in range(codes.shape[1]):
            left = left - self.books[level][codes[:, level]]
        return left

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """The vectors [num_rows, dim] that codes [num_rows, num_levels] stand for; fewer levels give a coarser one."""
        latent = torch.zeros(len(codes), self.dims[-1], device=codes.device)
        for level in range(codes.shape[1]):
            latent = latent + self.books[level][codes[:, level]]
        vectors: Tensor = self.decoder(latent)
        return vectors

    @torch.no_grad()
    def candidates(self, vector: Tensor, width: int) -> Tensor:
        """Up to `width` tuples for one vector [dim], the nearest first as a beam search finds them: [n, num_levels]."""
        left = self.embed(vector[None])
        codes = torch.zeros(1, 0, dtype=torch.int64, device=left.device)
        paid = torch.zeros(1, device=left.device)
        for level, (book, price) in enumerate(zip(self.books, self.prices, strict=True)):
            costs = self.costs(left, level) + paid[:, None]
            best = costs.flatten().topk(min(width, costs.numel()), largest=False).indices
            beams, picked = best // len(book), best % len(book)
            codes = torch.cat([codes[beams], picked[:, None]], dim=1)
            left, paid = left[beams] - book[picked], paid[beams] + price[picked]
        return codes

    def save(self, folder: str | Path) -> None:
        """Writes the shape as JSON and the weights as safetensors into an existing folder."""
        told = {"dims": list(self.dims), "sizes": list(self.sizes), "steps": list(self.steps)}
        save_file({name: value.cpu().contiguous() for name, value in self.state_dict().items()}, _weights(folder))
        (Path(folder) / SHAPE_FILE).write_text(json.dumps(told) + "\n", encoding="utf-8")


def load_tokenizer(folder: str | Path) -> ItemTokenizer:
    """The tokenizer that was saved in a map's folder; raises DataError when it cannot be read."""
    try:
        told = json.loads((Path(folder) / SHAPE_FILE).read_text(encoding="utf-8"))
        tokenizer = ItemTokenizer(told["dims"], told["sizes"], told["steps"])
        tokenizer.load_state_dict(load_file(_weights(folder)))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise DataError(
            f"{folder} holds no tokenizer that can be read ({error!r}), so new items cannot get codes; copy the whole "
            "folder again, or make the map again with `genrec tokenize CONFIG --overwrite`."
        ) from error
    return tokenizer


def _weights(folder: str | Path) -> Path:
    return Path(folder) / WEIGHTS_FILE


def in_cache(rows: Tensor) -> tuple[Tensor, ...]:
    """`rows` [num_rows, dim] in stretches that a core's cache holds, for several passes over each; a GPU takes all."""
    return torch.split(rows, max(MIN_STRETCH, CACHE_BYTES // (4 * rows.shape[1]))) if rows.is_cpu else (rows,)


def squared_distances(rows: Tensor, points: Tensor) -> Tensor:
    """|row - point|^2 for all pairs, [num_rows, num_points], by one matrix product."""
    return (
        rows.square().sum(dim=1, keepdim=True) - 2 * (rows @ points.T) + points.square().sum(dim=1)[None]
    ).clamp_min(0)
