"""What keeping a beam search to real items costs: the trie beside no constraint, and beside a dict of prefixes.

    python benchmarks/decode.py [--items 1000000] [--levels 4] [--size 256] [--width 20] [--users 32] [--rounds 5]
        [--build-items 10000000] [--threads 1] [--device cpu]

The catalogue is random different tuples, the model a TIGER of the published sizes with random weights that reads 20
items. Searches, in turns:

* `trie`: genrec's beam search.
* `free`: the same search without any constraint. Most of what it returns is no item.
* `dict`: before each choice, each beam looks its prefix up in a dict of the codes that may follow and unmasks them, one
  beam after another, as the prefix constraint of transformers' `generate` does.

Each is timed with the model, and alone (`--models none`): with log-probabilities that are already there.
`--build-items` items are then made into a trie, for its time and size; 0 leaves that out. `cpu_s` is processor time; on
a machine that does something else too it is the number to read.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrec.bench.result import Result, Row, summarize, write_result
from genrec.config import EvaluationConfig, FullSoftmaxConfig
from genrec.config_models import TigerConfig
from genrec.data.batch import Batch, batch_from_arrays
from genrec.losses.build import build_loss
from genrec.losses.full import FullSoftmax
from genrec.models.code_model import CodeSetting
from genrec.models.tiger import Tiger
from genrec.semantic.beam import CodeScorer, beam_search
from genrec.semantic.ids import SemanticIds
from genrec.semantic.trie import CodeTrie
from script import options_of, result_of, run_script

HISTORY = 20  # items
K = 10
Search = Callable[[CodeScorer, Batch], Tensor]
"""A scorer and some users to their best tuples or items, one row a user."""


def random_ids(num_items: int, sizes: tuple[int, ...]) -> SemanticIds:
    """A catalogue of different random tuples."""
    generator = np.random.default_rng(0)
    space = int(np.prod(sizes))
    drawn = np.empty(0, dtype=np.int64)
    while len(drawn) < num_items:
        # `np.unique` hashes, which takes a hundred times as long as a sort where nearly all differ.
        drawn = np.sort(np.append(drawn, generator.integers(0, space, num_items + num_items // 8)))
        drawn = drawn[np.append(True, np.diff(drawn) > 0)]
    numbers = generator.permutation(drawn)[:num_items]
    codes = np.full((num_items + 1, len(sizes)), -1, dtype=np.int32)
    for level in reversed(range(len(sizes))):
        codes[1:, level] = numbers % sizes[level]
        numbers = numbers // sizes[level]
    return SemanticIds(codes, sizes, "random")


class ReadyScorer:
    """Log-probabilities that are already there, the same for every prefix: what is left is the search."""

    def __init__(self, sizes: tuple[int, ...], num_users: int, width: int, device: torch.device) -> None:
        self.sizes = sizes
        generator = torch.Generator().manual_seed(0)
        logits = [
            torch.randn(num_users, width if level else 1, size, generator=generator) for level, size in enumerate(sizes)
        ]
        self.found = [of_level.log_softmax(2).to(device) for of_level in logits]

    def start(self, batch: Batch) -> None:
        """Nothing is read."""

    def step(self, state: None, level: int, codes: Tensor | None, parents: Tensor | None) -> tuple[Tensor, None]:
        """See `CodeScorer`."""
        return self.found[level], None


def tiger(ids: SemanticIds, device: torch.device) -> Tiger:
    """A TIGER of the published sizes."""
    torch.manual_seed(0)
    loss = build_loss(FullSoftmaxConfig(name="full-softmax"))
    assert isinstance(loss, FullSoftmax)
    return Tiger(TigerConfig(name="tiger"), CodeSetting(ids, EvaluationConfig()), loss).eval().to(device)


def free_search(width: int) -> Search:
    """A beam search over all tuples."""
    return _search(width, lambda scores, tuples: scores)


def dict_search(ids: SemanticIds, width: int) -> Search:
    """A beam search in which every beam looks up what may follow."""
    follow: dict[tuple[int, ...], list[int]] = {}
    order = np.lexsort(ids.codes[1:].T[::-1])
    for codes in ids.codes[1:][order].tolist():
        for level, code in enumerate(codes):
            seen = follow.setdefault(tuple(codes[:level]), [])
            if not seen or seen[-1] != code:
                seen.append(code)

    def constrain(scores: Tensor, tuples: Tensor) -> Tensor:
        mask = torch.full_like(scores, -float("inf"))
        for user, beams in enumerate(tuples.tolist()):
            for beam, prefix in enumerate(beams):
                mask[user, beam, follow.get(tuple(prefix), [])] = 0
        return scores + mask

    return _search(width, constrain)


def _search(width: int, constrain: Callable[[Tensor, Tensor], Tensor]) -> Search:
    """A beam search; `constrain` takes the scores of the next code of all beams and their tuples until there."""

    def search(scorer: CodeScorer, batch: Batch) -> Tensor:
        state = scorer.start(batch)
        sums = torch.zeros(batch.num_sequences, 1, device=batch.items.device)
        codes: Tensor | None = None
        parents: Tensor | None = None
        tuples = sums.new_zeros(batch.num_sequences, 1, 0, dtype=torch.int64)
        for level, size in enumerate(scorer.sizes):
            scores, state = scorer.step(state, level, codes, parents)
            scores = constrain(scores, tuples)
            sums, places = (scores + sums.unsqueeze(2)).flatten(1).topk(width, dim=1)
            parents, codes = places // size, places % size
            before = tuples.gather(1, parents.unsqueeze(2).expand(-1, -1, tuples.shape[2]))
            tuples = torch.cat([before, codes.unsqueeze(2)], dim=2)
        return tuples[:, :K]

    return search


def trie_search(trie: CodeTrie, width: int) -> Search:
    """genrec's."""
    return lambda scorer, batch: beam_search(scorer, batch, trie, width, K)[0]


def build(num_items: int, sizes: tuple[int, ...]) -> Row:
    """Time and size of the trie of a large catalogue."""
    started_at = time.process_time()
    ids = random_ids(num_items, sizes)
    made_at = time.process_time()
    trie = CodeTrie.from_ids(ids)
    built_at = time.process_time()
    half = torch.arange(num_items + 1) % 2 == 1
    part = trie.restricted_to(half)
    return {
        "what": "build",
        "items": num_items,
        "map_s": made_at - started_at,
        "trie_s": built_at - made_at,
        "trie_bytes": trie.nbytes,
        "bytes_per_item": trie.nbytes / num_items,
        "half_s": time.process_time() - built_at,
        "half_bytes": part.nbytes,
    }


def measure(arguments: argparse.Namespace) -> Result:
    """Processor and wall seconds of every search, with the model and alone, and of building a large trie."""
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    sizes = (arguments.size,) * arguments.levels
    ids = random_ids(arguments.items, sizes)
    trie = CodeTrie.from_ids(ids).to(device)
    searches = {
        "trie": trie_search(trie, arguments.width),
        "free": free_search(arguments.width),
        "dict": dict_search(ids, arguments.width),
    }
    scorers: dict[str, CodeScorer] = {"none": ReadyScorer(sizes, arguments.users, arguments.width, device)}
    if "tiger" in arguments.models:
        scorers = {"tiger": tiger(ids, device)} | (scorers if "none" in arguments.models else {})
    items = np.random.default_rng(1).integers(1, arguments.items + 1, arguments.users * HISTORY)
    batch = batch_from_arrays(items, np.arange(arguments.users + 1) * HISTORY).to(device)
    with torch.inference_mode():
        rows = time_searches(searches, scorers, batch, arguments.rounds)
        medians: dict[str, Any] = {}
        if "tiger" in scorers:
            medians["same_items_as_dict"] = check(searches, scorers["tiger"], batch, ids)
    for model in scorers:
        seconds = {
            name: [float(row["cpu_s"] or 0) for row in rows if (row["what"], row["model"]) == (name, model)]
            for name in searches
        }
        for name, readings in seconds.items():
            summary = summarize(readings)
            ratios = summarize(other / own for other, own in zip(readings, seconds["trie"], strict=True))
            assert summary is not None and ratios is not None
            medians[f"{name}, model {model}"] = {"cpu_s": asdict(summary), "times_trie": asdict(ratios)}
            print(
                f"{name:5} model {model:5}: {1_000 * summary.median:8.1f} ms, {ratios.median:6.2f} x trie", flush=True
            )
    if arguments.build_items:
        built = build(arguments.build_items, sizes)
        medians["build"] = built
        rows.append(built)
        print(json.dumps(built), flush=True)
    return result_of(
        __file__,
        config={name: value for name, value in vars(arguments).items() if name != "json"},
        rows=rows,
        medians=medians,
        packages=("torch", "numpy"),
    )


def time_searches(searches: dict[str, Search], scorers: dict[str, CodeScorer], batch: Batch, rounds: int) -> list[Row]:
    """Readings of each search with each scorer; they take turns. The first turn is not counted."""
    rows: list[Row] = []
    for number in range(-1, rounds):
        for model, scorer in scorers.items():
            for name, search in searches.items():
                wall, cpu = _clock(batch), time.process_time()
                search(scorer, batch)
                wall, cpu = _clock(batch) - wall, time.process_time() - cpu
                if number >= 0:
                    row: Row = {"what": name, "model": model, "round": number, "seconds": wall, "cpu_s": cpu}
                    rows.append({**row, "load_average_1_min": os.getloadavg()[0]})
    return rows


def check(searches: dict[str, Search], scorer: CodeScorer, batch: Batch, ids: SemanticIds) -> float:
    """The share of places at which trie and dict agree on the item: 1, but for sums that tie."""
    found = torch.from_numpy(ids.codes[searches["trie"](scorer, batch).cpu().numpy()])
    return float((found == searches["dict"](scorer, batch).cpu()).all(dim=2).float().mean())


def _clock(batch: Batch) -> float:
    if batch.items.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Measures what the command line asks for, prints a line a search and writes the JSON."""
    parser = options_of(__file__, __doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="codes of a level")
    parser.add_argument("--width", type=int, default=20, help="beams of a user")
    parser.add_argument("--users", type=int, default=32, help="at a time")
    parser.add_argument("--models", nargs="+", choices=["tiger", "none"], default=["tiger", "none"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--build-items", type=int, default=10_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    write_result(arguments.json, measure(arguments))
    print(json.dumps({"result": arguments.json}))


if __name__ == "__main__":
    run_script(main)
