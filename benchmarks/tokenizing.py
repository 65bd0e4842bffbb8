"""Residual k-means of genrec beside faiss's ResidualQuantizer: time to train and to code, and what the codes leave.

    pip install faiss-cpu        # for the comparison only; without it, `--no-faiss`
    python benchmarks/tokenizing.py --rows 1000000 --dim 256 --sizes 256 256 256

The vectors are a random mixture with as many centres as a level has codes, and smaller mixtures inside of each. Both
train on all rows, on one thread unless `--threads` says otherwise. genrec reads the file batch by batch, faiss gets all
of it in memory. faiss has a beam of 1 and as many iterations, so that both do the same: level by level, greedy.
Times are processor seconds of the process, which a busy machine changes little.
"""

import argparse
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from genrec.bench.result import Result, Row, write_result
from genrec.config import RKMeansTokenizer
from genrec.semantic.rkmeans import fit_rkmeans
from genrec.semantic.tokenize import encode
from genrec.semantic.tokenizers_rows import Rows
from genrec.semantic.vectors import ItemVectorRows
from peer_process import OUT
from script import options_of, result_of

Floats = npt.NDArray[np.float32]

ROWS_PER_BLOCK = 65_536


def write_mixture(path: Path, num_rows: int, dim: int, num_centres: int, seed: int = 0) -> Floats:
    """A memory-mapped file of vectors: centres, smaller centres around each, and noise around those."""
    rng = np.random.default_rng(seed)
    wide = rng.normal(size=(num_centres, dim)).astype(np.float32)
    narrow = rng.normal(size=(num_centres, dim)).astype(np.float32) * 0.5
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(num_rows, dim))
    for first in range(0, num_rows, ROWS_PER_BLOCK):
        count = min(ROWS_PER_BLOCK, num_rows - first)
        noise = rng.normal(size=(count, dim)).astype(np.float32) * 0.25
        table[first : first + count] = (
            wide[rng.integers(num_centres, size=count)] + narrow[rng.integers(num_centres, size=count)] + noise
        )
    table.flush()
    return np.load(path, mmap_mode="c")


def run_genrec(vectors: Floats, sizes: tuple[int, ...], iterations: int) -> Row:
    """Processor seconds to train and to code, and the error over the variance."""
    config = RKMeansTokenizer(name="rkmeans", sizes=sizes, iterations=iterations, max_train_rows=len(vectors))
    began = time.process_time()
    tokenizer = fit_rkmeans(config, Rows(vectors, np.arange(len(vectors))), seed=1)
    trained = time.process_time()
    found = ItemVectorRows(vectors, np.ones(len(vectors), dtype=np.bool_))
    codes = encode(tokenizer, found)
    coded = time.process_time()

    def decoded(rows: slice) -> Floats:
        values: Floats = tokenizer.decode(torch.from_numpy(codes[rows].astype(np.int64))).numpy()
        return values

    return _row("genrec", trained - began, coded - trained, relative_error(vectors, decoded))


def run_faiss(vectors: Floats, sizes: tuple[int, ...], iterations: int) -> Row:
    """The same of faiss; sizes are powers of two there."""
    faiss: Any = importlib.import_module("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    bits = faiss.UInt64Vector()
    for size in sizes:
        bits.push_back(int(np.log2(size)))
    quantizer = faiss.ResidualQuantizer(vectors.shape[1], bits)
    quantizer.max_beam_size = 1
    quantizer.train_type = faiss.ResidualQuantizer.Train_default
    quantizer.cp.niter = iterations
    quantizer.cp.max_points_per_centroid = len(vectors)
    began = time.process_time()
    quantizer.train(np.asarray(vectors))
    trained = time.process_time()
    codes = quantizer.compute_codes(np.asarray(vectors))
    coded = time.process_time()
    return _row(
        "faiss", trained - began, coded - trained, relative_error(vectors, lambda rows: quantizer.decode(codes[rows]))
    )


def relative_error(vectors: Floats, decoded: Any) -> float:
    """Squared error of `decoded(slice)` over the variance of the vectors, block by block."""
    error = squares = 0.0
    total = np.zeros(vectors.shape[1])
    for first in range(0, len(vectors), ROWS_PER_BLOCK):
        rows = slice(first, min(first + ROWS_PER_BLOCK, len(vectors)))
        block = vectors[rows].astype(np.float64)
        error += float(np.square(block - decoded(rows)).sum())
        squares += float(np.square(block).sum())
        total += block.sum(axis=0)
    return error / (squares - float(np.square(total).sum()) / len(vectors))


def _row(name: str, train_s: float, code_s: float, error: float) -> Row:
    return {"name": name, "train_s": train_s, "code_s": code_s, "relative_error": error}


def measure(options: argparse.Namespace) -> Result:
    """Runs both, one after the other."""
    OUT.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    sizes = tuple(options.sizes)
    with tempfile.TemporaryDirectory(dir=OUT) as folder:
        vectors = write_mixture(Path(folder) / "vectors.npy", options.rows, options.dim, max(sizes))
        rows = [run_genrec(vectors, sizes, options.iterations)]
        if options.faiss:
            rows.append(run_faiss(vectors, sizes, options.iterations))
    for row in rows:
        row["load_average_1_min"] = os.getloadavg()[0]
    return result_of(
        __file__,
        config={"rows": options.rows, "dim": options.dim, "sizes": list(sizes), "iterations": options.iterations},
        rows=rows,
        medians=_ratios(rows),
        packages=["genrec", "torch", "numpy", *(["faiss-cpu"] if options.faiss else [])],
    )


def _ratios(rows: list[Row]) -> dict[str, Any]:
    """genrec's numbers, and how many times faiss's they are."""
    values = {name: float(rows[0][name] or 0) for name in ("train_s", "code_s", "relative_error")}
    theirs = (
        {f"{name}_over_faiss": values[name] / float(rows[1][name] or 1) for name in values} if len(rows) > 1 else {}
    )
    return values | theirs


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options; ends with a sentence where faiss is wanted and missing."""
    parser = options_of(__file__, __doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="vectors")
    parser.add_argument("--dim", type=int, default=256, help="numbers in a vector")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 256, 256], help="codes of each level")
    parser.add_argument("--iterations", type=int, default=25, help="passes of k-means for each level")
    parser.add_argument("--threads", type=int, default=1, help="threads of either")
    parser.add_argument("--no-faiss", dest="faiss", action="store_false", help="genrec alone")
    options = parser.parse_args(arguments)
    if options.faiss and importlib.util.find_spec("faiss") is None:
        parser.error("faiss is not installed: pip install faiss-cpu, or give --no-faiss")
    return options


if __name__ == "__main__":
    asked = parse(sys.argv[1:])
    result = measure(asked)
    write_result(asked.json, result)
    print(json.dumps([*result.rows, result.medians], indent=1))
