"""The one place that says which events a role may see (contract 2: splits are rules over sequences, not copies)."""

import numpy as np
import numpy.typing as npt

from genrec.config import GlobalTimeSplit, LeaveOneOutSplit
from genrec.data.schema import Role

MIN_LEAVE_ONE_OUT_EVENTS = 3  # one to learn from, one to validate on, one to test on


def history_ends(
    rule: LeaveOneOutSplit | GlobalTimeSplit,
    role: Role,
    times: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """How many leading events of each sequence a role may see, and which sequences it evaluates.

    `times` [num_events] are the seconds of all sequences, one after another; `offsets` [num_sequences + 1] are their
    borders.
    Returns `ends` [num_sequences] and `evaluated` [num_sequences]. Training uses events `[0, end)`; validation and
    test predict event `end` from events `[0, end)` where `evaluated` holds; for training it is all False.

    leave-one-out: test is the last event, validation the one before; sequences shorter than 3 are training only.
    global-time: a role sees what is before its period, and predicts the user's first event inside it.
    """
    lengths = np.diff(offsets)
    if isinstance(rule, LeaveOneOutSplit):
        long_enough = lengths >= MIN_LEAVE_ONE_OUT_EVENTS
        held_out = 1 if role == "test" else 2
        ends = np.where(long_enough, lengths - held_out, lengths)
        return ends, long_enough if role != "train" else np.zeros(len(lengths), dtype=np.bool_)
    start = rule.test_from if role == "test" else rule.validation_from
    ends = _count_before(times, offsets, start)
    if role == "train":
        return ends, np.zeros(len(lengths), dtype=np.bool_)
    until = _count_before(times, offsets, rule.test_from) if role == "validation" else lengths
    return ends, (ends > 0) & (until > ends)


def _count_before(times: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64], moment: int) -> npt.NDArray[np.int64]:
    """Events of each sequence that are earlier than `moment`; sequences are in time order."""
    before = np.concatenate([[0], np.cumsum(times < moment)])
    counts: npt.NDArray[np.int64] = before[offsets[1:]] - before[offsets[:-1]]
    return counts
