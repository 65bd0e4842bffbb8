"""The decode benchmark times every search, and its trie finds the items that its dict finds."""

from argparse import Namespace

from decode import measure


def test_every_search_has_its_readings() -> None:
    sizes = {"items": 400, "levels": 3, "size": 16, "width": 10, "users": 3, "build_items": 1_000}
    result = measure(Namespace(**sizes, rounds=2, models=["tiger", "none"], threads=1, device="cpu", json="unused"))
    timed = [(row["what"], row["model"]) for row in result.rows if row["what"] != "build"]
    assert len(timed) == 2 * len(set(timed)) == 2 * 3 * 2
    assert result.medians["same_items_as_dict"] == 1
    assert result.medians["dict, model none"]["times_trie"]["count"] == 2
    assert result.medians["build"]["bytes_per_item"] > 8
