"""The token of the user: which row it is, that it changes what is written, and that packing and steps do not."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from code_reference import NUM_ITEMS, VARIANTS, code_experiment, code_model, one_target, some_ids
from model_reference import random_batch, select_sequences

from genrec.config_sequences import UserInputs
from genrec.data.batch import Batch, batch_from_arrays
from genrec.data.manifest import load_manifest
from genrec.errors import ConfigError
from genrec.evaluation.protocol import protocol_card
from genrec.evaluation.users import Histories, window_batch
from genrec.models import jagged
from genrec.models.build import build_model
from genrec.models.code_model import CodeModel
from genrec.models.user_token import UserToken, before_sequences
from genrec.planning.code_flops import attended_lengths

LENGTHS = (3, 1, 12, 7)
USERS = (12, 5, 9_000_000_000, 7)


@pytest.fixture(autouse=True)
def several_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a new group cheap, so that the batch falls into several."""
    monkeypatch.setattr(jagged, "GROUP_OVERHEAD_ELEMENTS", 60)


def batch_of(users: tuple[int, ...] | None = USERS) -> Batch:
    return dataclasses.replace(random_batch(LENGTHS), users=None if users is None else torch.tensor(users))


def with_users(variant: str, **users: Any) -> CodeModel:
    return code_model(variant, inputs={"users": {"rows": 50, **users}}).double()


@pytest.fixture(params=list(VARIANTS))
def model(request: pytest.FixtureRequest) -> CodeModel:
    return with_users(str(request.param)).eval()


def test_rows_come_before_their_sequences() -> None:
    x = torch.arange(1.0, 7.0).unsqueeze(1)
    rows, offsets, places = before_sequences(torch.tensor([[-1.0], [-2.0]]), x, torch.tensor([0, 4, 6]))
    assert rows.squeeze(1).tolist() == [-1, 1, 2, 3, 4, -2, 5, 6]
    assert offsets.tolist() == [0, 5, 8]
    assert torch.equal(rows[places], x)


def test_a_user_has_one_row_and_an_unknown_one_the_first() -> None:
    token = UserToken(UserInputs(rows=2_000, dropout=0), 4, std=0.02)
    rows = token.rows_of(batch_of((12, -1, 9_000_000_000, 12)))
    assert rows[1] == 0
    assert rows[0] == rows[3] != rows[2]
    assert token.rows_of(batch_of(None)).tolist() == [0, 0, 0, 0]
    empty = dataclasses.replace(random_batch((1,)), users=torch.zeros(0, dtype=torch.int64))
    assert token.rows_of(empty).tolist() == [0]
    many = batch_from_arrays(np.ones(100_000, dtype=np.int64), np.arange(100_001))
    counts = torch.bincount(token.rows_of(dataclasses.replace(many, users=torch.arange(100_000))), minlength=2_001)
    assert counts[0] == 0 and counts[1:].min() > 20 and counts.max() < 90  # 50 each, give or take 7


def test_a_packed_batch_is_its_sequences(model: CodeModel) -> None:
    batch = batch_of()
    alone = [model(select_sequences(batch, [i])[0]).loss_sum for i in range(len(LENGTHS))]
    torch.testing.assert_close(model(batch).loss_sum, torch.stack(alone).sum())
    with torch.no_grad():
        scores = model.scores_of_all(batch)
        each = [model.scores_of_all(select_sequences(batch, [i])[0]) for i in range(len(LENGTHS))]
        torch.testing.assert_close(scores, torch.cat(each), atol=1e-5, rtol=0)
        model.evaluation = model.evaluation.model_copy(update={"beam_width": NUM_ITEMS})
        assert torch.equal(model.recommend(batch, 5)[0], scores.topk(5).indices)


def test_steps_equal_teacher_forcing(model: CodeModel) -> None:
    batch = batch_of()
    with torch.no_grad():
        scores = model.scores_of_all(batch)
        for user, position in enumerate(batch.last_positions.tolist()):
            forced = -model(one_target(batch, position)).loss_sum
            torch.testing.assert_close(scores[user, batch.targets[position]].double(), forced, atol=1e-5, rtol=0)


def test_users_differ_and_an_unknown_one_is_one_of_them(model: CodeModel) -> None:
    """Each loss depends on its own sequence's user and on no other; unknown users are answered, all alike."""
    others = (13, *USERS[1:])
    losses = {}
    for users in (USERS, others, (-1, *USERS[1:])):
        batch = batch_of(users)
        losses[users] = [model(one_target(batch, position)).loss_sum.item() for position in (2, 3, 15)]
    first, *rest = zip(*losses.values(), strict=True)
    assert len(set(first)) == 3
    assert all(len(set(values)) == 1 for values in rest)
    nobody, all_unknown = model(batch_of(None)), model(batch_of((-1, -1, -1, -1)))
    assert nobody.loss_sum.item() == all_unknown.loss_sum.item()


@pytest.mark.parametrize("variant", ["codes", "items", "tiger"])
def test_the_row_of_unknown_users_learns_by_dropout_alone(variant: str) -> None:
    for dropout, learns in ((0.5, True), (0.0, False)):
        model = with_users(variant, dropout=dropout).train()
        torch.manual_seed(0)
        for _ in range(5):
            model(batch_of()).loss_sum.backward()
        gradient = dict(model.named_parameters())["user.table.weight"].grad
        assert gradient is not None
        assert bool(gradient[0].abs().sum() > 0) == learns
        assert gradient[1:].abs().sum() > 0


def test_without_the_setting_nothing_reads_users() -> None:
    model = code_model("items").eval()
    assert not any(name.startswith("user.") for name, _ in model.named_parameters())
    assert model(batch_of()).loss_sum.item() == model(batch_of(None)).loss_sum.item()


def test_who_is_asked_about_reaches_the_model() -> None:
    """Evaluation and recommendation pass on who the users are."""
    offsets = np.array([0, 2, 3])
    histories = Histories(np.array([4, -1]), np.array([1, 2, 3]), np.arange(3), np.zeros(3, np.int64), offsets)
    batch = window_batch(histories, 1, np.array([9, 9]))
    assert batch.users is not None and batch.users.tolist() == [4, -1]
    assert batch.newest(1).users is batch.users
    moved = batch.to(torch.device("cpu"))
    assert moved.users is not None


def test_plans_and_cards_know_it(write_prepared, tmp_path) -> None:
    lengths = np.array([3, 5])
    for variant, expected in (("codes", [12, 18]), ("items", [4, 6]), ("tiger", [4, 7, 10, 4, 7, 10, 13, 16])):
        config = code_experiment(VARIANTS[variant], inputs={"users": {}})
        assert attended_lengths(config, 3, lengths).tolist() == expected
        with torch.device("meta"):
            assert build_model(config, NUM_ITEMS, semantic_ids=some_ids())
    manifest = load_manifest(write_prepared(tmp_path / "set", [[1, 2, 3]]))
    assert protocol_card(config, manifest, False, "test")["inputs"] == "codes, user"


def test_a_model_that_scores_items_has_no_user() -> None:
    with pytest.raises(ConfigError, match=r"inputs\.users is a token of models that write codes, .* is sasrec"):
        code_experiment({"name": "sasrec"}, inputs={"users": {}}, semantic_ids=None)
