"""Every token of a document is predicted once, from what stands before it in the same document."""

import numpy as np
import pytest

from nanochat.data.token_shards import TokenShard, TokenShards
from nanochat.evaluation.documents import DocumentRows


def make_shards() -> TokenShards:
    """Documents of 5, 0, 2 and 3 tokens in two shards; <|bos|> is 99."""
    first = TokenShard(np.arange(7, dtype=np.uint16), np.array([0, 5, 5, 7]))
    second = TokenShard(np.arange(10, 13, dtype=np.uint16), np.array([0, 3]))
    return TokenShards("made", [first, second], 99)


def test_rows_by_hand():
    rows = DocumentRows(make_shards(), 3)
    found = [tuple(part.tolist() for part in rows.row(i)) for i in range(len(rows))]
    assert found == [
        ([99, 0, 1], [0, 1, 2]),
        ([2, 3], [3, 4]),
        ([99, 5], [5, 6]),
        ([99, 10, 11], [10, 11, 12]),
    ]


@pytest.mark.parametrize("context", [1, 2, 5, 100])
def test_every_token_is_a_target_once(context):
    rows = DocumentRows(make_shards(), context)
    targets = np.concatenate([rows.row(i)[1] for i in range(len(rows))])
    assert targets.tolist() == [*range(7), 10, 11, 12]
    assert max(len(rows.row(i)[0]) for i in range(len(rows))) <= context
