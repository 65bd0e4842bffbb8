"""What a model over codes finds, in the order of another model's scores: recommended, measured, and refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import prepared_sets
import pytest
import torch
from code_catalogue import random_ids
from typer.testing import CliRunner

from genrec.cli import app
from genrec.config import ExperimentConfig
from genrec.data.batch import batch_from_arrays
from genrec.data.item_vectors import vectors_for
from genrec.data.schema import ITEMS_FILE
from genrec.errors import ConfigError, DataError, GenrecError, ProtocolError
from genrec.evaluation.run_evaluation import evaluate_run, evaluate_served
from genrec.inference.export import write_export
from genrec.inference.recommender import Recommender
from genrec.inference.serving import Serving
from genrec.models.build import build_model
from genrec.reporting.comparison import compare_runs
from genrec.run_dir import RunDir, run_dir_of

NUM_ITEMS, NUM_COLD = 40, 4
IDS = random_ids(NUM_ITEMS, (4, 5, 6), seed=3)
HISTORY = [10, 30, 50, 70, 90, 110]
WITH_VECTORS = (*prepared_sets.WITH_VECTORS, "seed=5")

Publish = Callable[..., RunDir]


@pytest.fixture
def prepared(tmp_path: Path, write_prepared) -> Path:
    """The last items have no event, and every item has a vector."""
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, NUM_ITEMS - NUM_COLD + 1, 9).tolist() for _ in range(30)]
    folder = write_prepared(tmp_path / "set", sequences, num_items=NUM_ITEMS)
    vectors = generator.normal(size=(NUM_ITEMS + 1, 3))
    vectors[0] = 0
    prepared_sets.give_vectors(folder, vectors)
    return folder


@pytest.fixture
def publish(make_config, prepared: Path) -> Publish:
    """A run with the export of an untrained model: `codes` writes codes, others score items."""

    def run_of(name: str, *overrides: str, folder: Path = prepared, content_hash: str = "one") -> RunDir:
        of_codes = (
            "model={name: code-decoder, dim: 16, num_layers: 1, num_heads: 2}",
            "semantic_ids.path=unused",
            "evaluation.beam_width=7",
        )
        config = make_config(folder, f"name={name}", *(of_codes if name == "codes" else ()), *overrides)
        run = run_dir_of(config)
        run.create(config)
        ids = IDS if name == "codes" else None
        torch.manual_seed(config.seed)
        model = build_model(config, NUM_ITEMS, item_vectors=vectors_for(config, folder), semantic_ids=ids)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(5)  # scores far enough apart that rounding changes no order
        info = {"step": 3, "content_hash": content_hash}
        write_export(run.export_path, model.state_dict(), config, folder / ITEMS_FILE, info, ids)
        return run

    return run_of


def test_with_all_items_as_candidates_it_is_the_other_model(publish: Publish) -> None:
    codes = publish("codes", "sequence.max_length=3")
    ranker = publish("dense", "sequence.max_length=5", "model.l2_normalize=true")
    everything = Serving(rerank=ranker.root, candidates=NUM_ITEMS)
    both, alone = Recommender.load(codes.root, served=everything), Recommender.load(ranker.root)
    for exclude_seen in (True, False):
        found = both.recommend(HISTORY, 12, exclude_seen=exclude_seen)
        expected = alone.recommend(HISTORY, 12, exclude_seen=exclude_seen)
        assert [pair.item for pair in found] == [pair.item for pair in expected]
        assert [pair.score for pair in found] == pytest.approx([pair.score for pair in expected], abs=1e-5)


def test_only_what_the_codes_model_finds_is_ordered(publish: Publish) -> None:
    codes, ranker = publish("codes"), publish("dense")
    proposed = [pair.item for pair in Recommender.load(codes.root).recommend(HISTORY, 7)]
    scores = dict(Recommender.load(ranker.root).recommend(HISTORY, NUM_ITEMS - len(HISTORY)))
    expected = sorted(proposed, key=lambda item: -scores[item])
    assert expected != proposed
    both = Recommender.load(codes.root, served=Serving(rerank=ranker.root))  # as many as there are beams: 7
    assert [pair.item for pair in both.recommend(HISTORY, 7)] == expected
    assert [pair.item for pair in both.recommend(HISTORY, 3)] == expected[:3]


def test_cold_items_are_scored_for_everybody(publish: Publish) -> None:
    codes, ranker = publish("codes"), publish("dense", *WITH_VECTORS)
    served = Serving(rerank=ranker.root, candidates=7, cold_items=True)
    proposed = {pair.item for pair in Recommender.load(codes.root).recommend(HISTORY, 7)}
    cold = {10 * item for item in range(NUM_ITEMS - NUM_COLD + 1, NUM_ITEMS + 1)}
    every = Recommender.load(ranker.root).recommend(HISTORY, NUM_ITEMS - len(HISTORY))
    expected = [pair for pair in every if pair.item in proposed | cold][:7]
    assert cold & {pair.item for pair in expected} and proposed - cold
    found = Recommender.load(codes.root, served=served).recommend(HISTORY, 7)
    assert [pair.item for pair in found] == [pair.item for pair in expected]
    assert [pair.score for pair in found] == pytest.approx([pair.score for pair in expected], abs=1e-5)


def test_the_newest_events_of_a_batch() -> None:
    batch = batch_from_arrays(np.arange(1, 9), np.array([0, 5, 6, 8]), times=np.arange(8) * 10)
    short = batch.newest(2)
    assert short.items.tolist() == [4, 5, 6, 7, 8]
    assert short.times.tolist() == [30, 40, 50, 60, 70]
    assert short.offsets.tolist() == [0, 2, 3, 5]
    assert batch.newest(5) is batch


def test_its_metrics_are_those_of_its_lists_and_say_so(publish: Publish, prepared: Path) -> None:
    codes, ranker = publish("codes"), publish("dense")
    plain = evaluate_run(codes, ("test",))["test"]
    before = codes.evaluation_path.read_text()
    all_candidates = Serving(rerank=ranker.root, candidates=NUM_ITEMS)
    told = evaluate_served(codes, ("test",), all_candidates)["test"]
    assert told["metrics"] == pytest.approx(evaluate_run(ranker, ("test",))["test"]["metrics"])
    assert told["metrics"] != plain["metrics"]
    card = told["protocol"]
    assert card["answered_by"] == "the 40 best of it in the order of the scores of dense (sasrec, step 3)"
    assert card["decoding"].startswith("codes: beam search, width 40;")
    assert card["inputs"] == "codes; re-ranking: items"
    assert codes.evaluation_path.read_text() == before
    assert json.loads(codes.served_evaluation_path.read_text())["test"]["metrics"] == told["metrics"]


def test_it_is_compared_with_the_run_itself_user_by_user(publish: Publish) -> None:
    codes, ranker = publish("codes"), publish("dense")
    evaluate_run(codes, ("test",))
    with pytest.raises(DataError, match=r"has no evaluation-served.json.*genrec evaluate .* with --rerank or --map"):
        compare_runs([codes.root, codes.served_evaluation_path], "test")
    told = evaluate_served(codes, ("test",), Serving(rerank=ranker.root))["test"]
    base, served = compare_runs([codes.root, codes.served_evaluation_path], "test").runs
    assert (base.name, served.name) == ("codes", "codes (served)")
    assert served.metrics == pytest.approx({name: told["metrics"][name] for name in served.metrics})
    assert served.num_shared == 30
    assert served.differences["mrr@10"].value == pytest.approx(served.metrics["mrr@10"] - base.metrics["mrr@10"])
    assert served.of_the_run["answered_by"].endswith("dense (sasrec, step 3)")
    evaluate_served(codes, ("test",), Serving(rerank=ranker.root, candidates=NUM_ITEMS))
    with pytest.raises(ProtocolError, match=r"width 10;.*width 40;"):  # more beams than the run itself has
        compare_runs([codes.root, codes.served_evaluation_path], "test")


def test_the_commands_option(publish: Publish) -> None:
    codes, ranker = publish("codes"), publish("dense")
    words = ["evaluate", str(codes.root), "--split", "test", "--json", "--rerank", str(ranker.root)]
    shown = CliRunner().invoke(app, [*words, "--candidates", "9"])
    assert shown.exit_code == 0, shown.output
    assert "the 9 best of it" in json.loads(shown.stdout)["test"]["protocol"]["answered_by"]
    with pytest.raises(ConfigError, match="--candidates is about re-ranking; add --rerank RUN"):
        CliRunner().invoke(app, ["evaluate", str(codes.root), "--candidates", "9"], catch_exceptions=False)
    words = ["recommend", str(codes.root), "--rerank", "x", "--cold-items", "--max-per-prefix", "2"]
    with pytest.raises(ConfigError, match="--cold-items adds others; leave out one"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_pairs_that_do_not_fit_get_a_sentence(tmp_path: Path, publish: Publish, write_prepared) -> None:
    codes, ranker = publish("codes"), publish("dense")
    other = write_prepared(tmp_path / "other", [[3, 2, 1]], num_items=NUM_ITEMS, string_ids=True)
    stranger = publish("stranger", folder=other)

    def refused(run: RunDir, served: Serving, error: type[GenrecError] = ConfigError) -> str:
        with pytest.raises(error) as caught:
            Recommender.load(run.root, served=served)
        return str(caught.value)

    assert "scores every item already" in refused(ranker, Serving(rerank=codes.root))
    assert "writes codes and has no scores of items" in refused(codes, Serving(rerank=codes.root))
    assert "knows other items than" in refused(codes, Serving(rerank=stranger.root))
    assert "cannot score cold ones" in refused(codes, Serving(rerank=ranker.root, cold_items=True))
    assert "is not an export" in refused(codes, Serving(rerank=tmp_path / "nowhere"), DataError)
    elsewhere = publish("elsewhere", content_hash="another")
    with pytest.raises(DataError, match=r"was trained on another prepared set than .*, or on another split of it"):
        evaluate_served(codes, ("test",), Serving(rerank=elsewhere.root))
    refit = publish("refit", "sequence.train_on=train+validation")
    with pytest.raises(DataError, match="refit is a refit"):
        evaluate_served(codes, ("validation", "test"), Serving(rerank=refit.root))


def test_a_broken_model_is_told(publish: Publish, make_config: Callable[..., ExperimentConfig]) -> None:
    codes, ranker = publish("codes"), publish("dense", *WITH_VECTORS)
    both = Recommender.load(codes.root, served=Serving(rerank=ranker.root))
    with torch.no_grad():
        next(weight for name, weight in both._model.named_parameters() if name.startswith("ranker.input")).fill_(
            float("nan")
        )
    with pytest.raises(GenrecError, match="scores items as NaN"):
        both.recommend(HISTORY, 3)
