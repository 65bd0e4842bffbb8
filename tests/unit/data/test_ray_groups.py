"""How chunks are given to Ray Data's tasks: one each, or several epochs of a small set together."""

from genrec.data.plan import Chunk
from genrec.data.ray_stream import _grouped


def chunks_of(tokens: list[int]) -> list[Chunk]:
    return [Chunk(0, n, n, 1, 0, len(tokens), count, ()) for n, count in enumerate(tokens)]


def sizes(tokens: list[int]) -> list[list[int]]:
    return [[chunk.num_tokens for chunk in run] for run in _grouped(chunks_of(tokens), 1_000)]


def test_large_chunks_have_a_task_each() -> None:
    assert sizes([900, 1_000, 1_100, 950]) == [[900], [1_000], [1_100], [950]]


def test_epochs_of_a_small_set_share_a_task_but_the_first_comes_at_once() -> None:
    assert sizes([300] * 8) == [[300], [300] * 3, [300] * 3, [300]]


def test_no_chunks_make_no_task() -> None:
    assert sizes([]) == []
