"""Training of the tokenizers that are autoencoders: seeded minibatches, one optimizer, any number of workers.

Every worker takes its part of each step's rows and gradients are averaged, so workers that start equal stay equal.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from genrec.config import FSQTokenizer, RQVAETokenizer
from genrec.errors import RunError
from genrec.semantic.tokenizers import ItemTokenizer
from genrec.semantic.tokenizers_rows import Progress, Rows

STEPS_PER_REPORT = 20


def train_autoencoder(
    tokenizer: ItemTokenizer,
    loss_of: Callable[[Tensor], Tensor],
    config: RQVAETokenizer | FSQTokenizer,
    rows: Rows,
    seed: int,
    progress: Progress,
    after_pass: Callable[[int, torch.optim.Optimizer], None] | None = None,
) -> None:
    """Minimises `loss_of(vectors [num_rows, dim])`, a mean over rows, in place.

    A step reads `rows_per_batch` rows over all workers. After every pass but the last, all workers call
    `after_pass(passes done, optimizer)`. Raises RunError when the loss is no number any more.
    """
    weights = [weight for weight in tokenizer.parameters() if weight.requires_grad]
    kind = torch.optim.Adagrad if config.optimizer == "adagrad" else torch.optim.AdamW
    optimizer = kind(weights, lr=config.lr)
    share = rows.share
    per_worker = max(1, config.rows_per_batch // rows.count)
    # All workers step together, so the smallest share decides how often.
    steps = max(1, len(rows.chosen) // rows.count // per_worker)
    for epoch in range(config.epochs):
        order = np.random.default_rng([seed, epoch, rows.rank]).permutation(share)
        for step in range(steps):
            batch = rows.read(np.sort(order[step * per_worker : (step + 1) * per_worker]))
            loss = loss_of(batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            _average(weights, rows)
            optimizer.step()
        if epoch % STEPS_PER_REPORT == 0 or epoch == config.epochs - 1:
            mean = float(rows.sum(loss.detach().double().reshape(1))) / rows.count
            if not np.isfinite(mean):
                raise RunError(
                    f"The loss of semantic_ids.tokenizer {config.name} is {mean} after epoch {epoch + 1}: it diverges; "
                    f"lower semantic_ids.tokenizer.lr ({config.lr}), or use optimizer: adamw with lr: 0.001."
                )
            progress(f"{config.name}, loss {mean:.4g}", epoch + 1, config.epochs)
        if after_pass is not None and epoch < config.epochs - 1:
            after_pass(epoch + 1, optimizer)


@torch.no_grad()
def start_equal(tokenizer: ItemTokenizer, rows: Rows) -> None:
    """Gives all workers the first one's weights."""
    for weight in tokenizer.parameters():
        weight.copy_(rows.sum(weight.clone() if rows.rank == 0 else torch.zeros_like(weight)))


def _average(weights: list[torch.nn.Parameter], rows: Rows) -> None:
    if rows.count == 1:
        return
    flat = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])
    flat = rows.sum(flat) / rows.count
    first = 0
    for weight in weights:
        if weight.grad is not None:
            weight.grad.copy_(flat[first : first + weight.numel()].view_as(weight))
            first += weight.numel()
