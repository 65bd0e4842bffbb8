"""What holds for every model that writes codes: steps equal teacher forcing, and a batch is its sequences."""

import dataclasses
from typing import Any

import pytest
import torch
from code_reference import CODES, NUM_ITEMS, SIZES, VARIANTS, code_experiment, code_model, one_target, some_ids
from model_reference import random_batch, select_sequences

from genrec.errors import ConfigError
from genrec.models import code_model as code_models
from genrec.models import jagged
from genrec.models.build import build_model
from genrec.models.code_model import CodeModel
from genrec.semantic.run_map import made_up_ids

LENGTHS = (3, 1, 12, 7, 12, 2)


@pytest.fixture(autouse=True)
def several_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a new group cheap, so that the test batch falls into several, with padding in some."""
    monkeypatch.setattr(jagged, "GROUP_OVERHEAD_ELEMENTS", 60)
    assert 2 <= len(jagged.jagged_layout(random_batch(LENGTHS).offsets * 3, 1).groups) < len(set(LENGTHS))


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(variant: str) -> CodeModel:
    return code_model(variant).double().eval()


def test_steps_equal_teacher_forcing(model: CodeModel) -> None:
    batch = random_batch(LENGTHS)
    with torch.no_grad():
        scores = model.scores_of_all(batch)
        for user, position in enumerate(batch.last_positions.tolist()):
            forced = -model(one_target(batch, position)).loss_sum
            stepped = scores[user, batch.targets[position]].double()
            torch.testing.assert_close(stepped, forced, atol=1e-5, rtol=0)
            for middle in range(int(batch.offsets[user]), position):
                alone, _ = select_sequences(batch, [user])
                cut = middle + 1 - int(batch.offsets[user])
                begun = dataclasses.replace(
                    alone,
                    **{name: getattr(alone, name)[:cut] for name in ("items", "times", "actions", "targets")},
                    target_times=alone.target_times[:cut],
                    offsets=torch.tensor([0, cut]),
                )
                forced = -model(one_target(batch, middle)).loss_sum
                stepped = model.scores_of_all(begun)[0, batch.targets[middle]].double()
                torch.testing.assert_close(stepped, forced, atol=1e-5, rtol=0)


def test_beams_that_branch_merge_and_repeat_score_as_from_the_beginning(model: CodeModel) -> None:
    """The cache follows parents: any beams, in any order, of any width, have what a fresh start gives them."""
    batch = random_batch(LENGTHS)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        state = model.start(batch)
        _, state = model.step(state, 0, None, None)
        first = torch.randint(SIZES[0], (len(LENGTHS), 4), generator=generator)
        _, state = model.step(state, 1, first, torch.zeros_like(first))
        parents = torch.randint(4, (len(LENGTHS), 7), generator=generator)
        second = torch.randint(SIZES[1], (len(LENGTHS), 7), generator=generator)
        found, _ = model.step(state, 2, second, parents)
        assert found.shape == (len(LENGTHS), 7, SIZES[2])
        for beam in range(7):
            _, fresh = model.step(model.start(batch), 0, None, None)
            mine = first.gather(1, parents[:, beam : beam + 1])
            _, fresh = model.step(fresh, 1, mine, torch.zeros_like(mine))
            alone, _ = model.step(fresh, 2, second[:, beam : beam + 1], torch.zeros_like(mine))
            torch.testing.assert_close(found[:, beam], alone[:, 0], atol=1e-9, rtol=0)


def test_a_batch_of_many_equals_each_sequence_alone(model: CodeModel) -> None:
    batch = random_batch(LENGTHS)
    together = model(batch)
    alone = [model(select_sequences(batch, [i])[0]) for i in range(batch.num_sequences)]
    assert together.num_targets == sum(one.num_targets for one in alone) == batch.num_tokens
    torch.testing.assert_close(together.loss_sum, torch.stack([one.loss_sum for one in alone]).sum())
    with torch.no_grad():
        scores = model.scores_of_all(batch)
        each = [model.scores_of_all(select_sequences(batch, [i])[0]) for i in range(batch.num_sequences)]
    torch.testing.assert_close(scores, torch.cat(each), atol=1e-5, rtol=0)


def test_later_events_change_nothing_earlier(model: CodeModel) -> None:
    batch = random_batch((9,))
    changed_items, changed_targets = batch.items.clone(), batch.targets.clone()
    changed_items[6:] = changed_items[6:] % NUM_ITEMS + 1
    changed_targets[5:] = changed_targets[5:] % NUM_ITEMS + 1
    changed = dataclasses.replace(batch, items=changed_items, targets=changed_targets)
    for position in range(5):
        before, after = (model(one_target(each, position)).loss_sum for each in (batch, changed))
        torch.testing.assert_close(before, after, atol=1e-12, rtol=0)
    last = [model(one_target(each, 8)).loss_sum for each in (batch, changed)]
    assert not torch.allclose(last[0], last[1])


def test_targets_of_minus_one_do_not_count_and_weights_do(model: CodeModel) -> None:
    batch = random_batch(LENGTHS)
    losses = torch.stack([model(one_target(batch, position)).loss_sum for position in range(batch.num_tokens)])
    counted = torch.arange(batch.num_tokens) % 3 == 0
    some = model(dataclasses.replace(batch, targets=torch.where(counted, batch.targets, -1)))
    assert some.num_targets == int(counted.sum())
    torch.testing.assert_close(some.loss_sum, losses[counted].sum())
    weights = torch.linspace(0, 2, batch.num_tokens)
    weighted = model(dataclasses.replace(batch, target_weights=weights))
    torch.testing.assert_close(weighted.loss_sum, (losses * weights).sum(), atol=1e-4, rtol=1e-6)


def test_every_weight_learns_and_a_batch_without_targets_is_zero(variant: str) -> None:
    model, batch = code_model(variant), random_batch(LENGTHS)
    model(batch).loss_sum.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().max() > 0, name
    model.zero_grad()
    padding = dataclasses.replace(random_batch((1,)), items=torch.zeros(1, dtype=torch.int64))
    for empty in (batch, padding):
        result = model(dataclasses.replace(empty, targets=torch.full_like(empty.targets, -1)))
        assert (result.num_targets, result.loss_sum.item()) == (0, 0.0)
        result.loss_sum.backward()
        assert all(weight.grad is not None and not weight.grad.any() for weight in model.parameters())


def test_scores_are_a_distribution_over_the_catalogue(model: CodeModel) -> None:
    """With an item for every tuple the probabilities add up to 1, but for what TIGER gives to codes of other levels."""
    ids = made_up_ids(4 * 5 * 6, SIZES)
    full = code_model("codes", ids).double().eval()
    with torch.no_grad():
        scores = full.scores_of_all(random_batch(LENGTHS, num_items=ids.num_items))
        some = model.scores_of_all(random_batch(LENGTHS))
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(len(LENGTHS)), atol=1e-5, rtol=0)
    assert (some[:, 0] == -torch.inf).all()
    assert (some[:, 1:].exp().sum(dim=1) < 1).all()


def test_recommend_gives_the_best_items_and_leaves_out_what_is_excluded(model: CodeModel) -> None:
    batch = random_batch(LENGTHS)
    with torch.no_grad():
        items, scores = model.recommend(batch, 5)
        best = model.scores_of_all(batch).topk(5, dim=1)
        assert torch.equal(items, best.indices)
        assert torch.equal(scores, best.values)
        excluded = (torch.arange(len(LENGTHS)), items[:, 0])
        again, _ = model.recommend(batch, 4, excluded)
        assert torch.equal(again, items[:, 1:])
        row = torch.zeros(NUM_ITEMS - 2, dtype=torch.int64)
        few, few_scores = model.recommend(batch, 5, (row, torch.arange(1, NUM_ITEMS - 1)))
    assert few[0, 2:].tolist() == [0, 0, 0]
    assert (few_scores[0, 2:] == -torch.inf).all()
    with pytest.raises(ConfigError, match=r"k \(51\) is larger than the catalogue of 50 items"):
        model.recommend(batch, 51)


def test_workers_that_share_weights_make_the_same_number_of_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeRO-3 gathers weights from all workers in every pass, so nothing may depend on how many users a worker has."""
    model = code_model("items", evaluation={"users_per_batch": 5}).eval()
    batch, passes = random_batch((3, 1, 12)), []
    start = model.start
    monkeypatch.setattr(model, "start", lambda part: (passes.append(part.num_sequences), start(part))[1])
    monkeypatch.setattr(code_models, "MAX_SCORED_BYTES", 1)  # a user at a time
    with torch.no_grad():
        alone = model.recommend(batch, 4)
        assert passes == [1, 1, 1]
        next(model.parameters()).ds_id = 0  # what DeepSpeed gives every weight that it shares out
        shared = model.recommend(batch, 4)
    assert passes[3:] == [1, 1, 1, 1, 1]
    assert all(torch.equal(one, other) for one, other in zip(alone, shared, strict=True))


@pytest.mark.parametrize("way", ["bf16", "autocast"])
def test_bf16_is_near_fp32(variant: str, way: str) -> None:
    model, batch = code_model(variant).eval(), random_batch(LENGTHS)
    exact = model(batch).loss_sum.item()
    if way == "bf16":
        nearly = model.bfloat16()(batch).loss_sum
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            nearly = model(batch).loss_sum
    assert nearly.dtype == torch.float32
    assert nearly.item() == pytest.approx(exact, rel=0.02)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=way == "autocast"):
        assert torch.isfinite(model.scores_of_all(batch)[:, 1:]).all()


@pytest.mark.parametrize("variant", ["codes", "items-ids", "tiger"])
def test_a_small_set_is_learned_by_heart(variant: str) -> None:
    torch.manual_seed(0)
    config = code_experiment(VARIANTS[variant] | {"dropout": 0.0, "dim": 32})
    model = build_model(config, NUM_ITEMS, semantic_ids=some_ids())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = random_batch((4, 4, 4))
    for _ in range(25):
        result = model(batch)
        result.loss_sum.div(result.num_targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        items, _ = model.eval().recommend(batch, 1)
    assert items[:, 0].tolist() == batch.targets[batch.last_positions].tolist()


def test_dropout_is_drawn_from_the_seed_and_only_in_training(variant: str) -> None:
    model, batch = code_model(variant).train(), random_batch(LENGTHS)

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return float(model(batch).loss_sum.detach())

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)
    model.eval()
    assert loss(1) == loss(2)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    batch = random_batch(LENGTHS)
    for history in ("codes", "items"):
        gradients = []
        for recompute in ("none", "block"):
            torch.manual_seed(0)
            config = code_experiment(CODES | {"history": history, "recompute": recompute})
            model = build_model(config, NUM_ITEMS, semantic_ids=some_ids()).train()
            torch.manual_seed(1)
            model(batch).loss_sum.backward()
            gradients.append([weight.grad for weight in model.parameters()])
        for kept, again in zip(*gradients, strict=True):
            assert kept is not None
            torch.testing.assert_close(kept, again)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"semantic_ids": None}, "semantic_ids is null; set semantic_ids.path"),
        ({"loss": {"name": "bce"}}, "is trained with loss.name: full-softmax, not bce"),
        ({"inputs": {"actions": True}}, "reads codes alone; leave inputs.actions out"),
        ({"heads": {"dwell": {}}}, "has no heads"),
        ({"model": {"item_ids": True}}, "item_ids cannot be set with history: codes"),
        ({"model": {"history": "items", "separator": True}}, "separator cannot be set with history: items"),
        ({"evaluation": {"decoding": "exhaustive"}, "engine": {"zero_stage": 3}}, "needs evaluation.decoding: beam"),
    ],
)
def test_settings_that_do_not_fit_get_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        code_experiment(CODES | changes.pop("model", {}), **changes)


def test_a_model_without_codes_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs the codes of the items, and there are none"):
        build_model(code_experiment(CODES), NUM_ITEMS)


def test_other_inputs_are_read_beside_items() -> None:
    config = code_experiment(CODES | {"history": "items"}, inputs={"time_features": ["gap"]})
    model = build_model(config, NUM_ITEMS, semantic_ids=some_ids()).eval()
    assert model.reads_times
    batch = random_batch(LENGTHS)
    slower = dataclasses.replace(batch, times=batch.times * 3)
    assert model(batch).loss_sum.item() != model(slower).loss_sum.item()
