"""packing.py: plans from lengths alone."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.packing import (
    best_fit_decreasing,
    cut_at_turns,
    of_epochs,
    plan_rows,
    row_bounds,
    shuffled,
    split_documents,
)

quick = settings(max_examples=60, deadline=None)
document_lengths = st.lists(st.integers(0, 30), max_size=30)


def offsets_of(lengths) -> np.ndarray:
    return np.cumsum([0, *lengths])


def test_shuffled_never_changes():
    """These values are what resumed runs rely on: they hold for every version of numpy."""
    assert shuffled(8, 42, 0).tolist() == [4, 1, 3, 6, 0, 7, 2, 5]
    assert sorted(shuffled(1000, 42, 1).tolist()) == list(range(1000))
    assert shuffled(1000, 42, 1).tolist() != shuffled(1000, 42, 2).tolist()


def test_long_documents_are_split_and_empty_ones_have_no_piece():
    starts, lengths = split_documents(np.array([0, 5, 5, 7]), row_tokens=3)
    assert starts.tolist() == [0, 3, 5]
    assert lengths.tolist() == [3, 2, 2]


def test_best_fit_by_hand():
    # 7 opens row 0, 6 row 1; 4 fits row 1 exactly; 3 fits row 0 exactly; 5 had opened row 2.
    rows = best_fit_decreasing(np.array([4, 6, 3, 7, 5]), capacity=10)
    assert rows.tolist() == [1, 1, 0, 0, 2]


def slow_best_fit(sizes, capacity) -> list[int]:
    """The twin: looks at every row for every item. How full the rows are, sorted."""
    rows: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [i for i, held in enumerate(rows) if held + size <= capacity]
        if fitting:
            rows[max(fitting, key=rows.__getitem__)] += size
        else:
            rows.append(size)
    return sorted(rows)


@quick
@given(st.lists(st.integers(1, 12), max_size=40))
def test_best_fit_is_its_slow_twin(sizes):
    rows = best_fit_decreasing(np.array(sizes, dtype=np.int64), capacity=12)
    held = np.bincount(rows, weights=sizes).astype(int).tolist() if sizes else []
    assert sorted(held) == slow_best_fit(sizes, 12)


@quick
@given(document_lengths, st.integers(1, 12))
def test_plan_has_every_token_once_in_rows_that_fit(lengths, row_tokens):
    offsets = offsets_of(lengths)
    plan = plan_rows(offsets, row_tokens)
    covered = [t for start, length, _ in plan.tolist() for t in range(start, start + length)]
    assert sorted(covered) == list(range(offsets[-1]))
    bounds = row_bounds(plan)
    assert bounds[0] == 0 and bounds[-1] == len(plan)
    for row, (a, b) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        assert set(plan[a:b, 2]) == {row}
        assert (plan[a:b, 1] + 1).sum() <= row_tokens + 1
    document = np.searchsorted(offsets, plan[:, 0], side="right") - 1
    assert (plan[:, 0] + plan[:, 1] <= offsets[document + 1]).all()  # a piece is of one document


def test_short_documents_stand_first_in_some_rows():
    lengths = [20] * 50 + [3] * 50
    plan = plan_rows(offsets_of(lengths), row_tokens=24)  # 21 + 4 places: every row is one of each
    first = plan[row_bounds(plan)[:-1], 1]
    assert len(first) == 50 and set(first) == {20, 3}


def test_cut_at_turns_by_hand():
    # Four conversations of 5, 8, 7 and 3 tokens; turns end after tokens 5 | 4, 8 | 7 | never.
    offsets = offsets_of([5, 8, 7, 3])
    turn_ends = np.array([5, 5 + 4, 5 + 8, 13 + 7])
    starts, ends, counts = cut_at_turns(offsets, turn_ends, max_tokens=6)
    assert starts.tolist() == [0, 5]
    assert ends.tolist() == [5, 9]
    assert list(counts.values()) == [2, 1, 1, 1]


def test_epochs_follow_each_other_each_in_an_order_of_its_own():
    whole = of_epochs(10, 0, 20, seed=7).tolist()
    assert sorted(whole[:10]) == sorted(whole[10:]) == list(range(10)) and whole[:10] != whole[10:]
    parts = [of_epochs(10, first, 4, seed=7).tolist() for first in range(0, 20, 4)]
    assert [item for part in parts for item in part] == whole
    assert of_epochs(10, 0, 20, seed=8).tolist() != whole
