"""Which pieces of which documents stand together in a row: from lengths alone.

A packed row has T + 1 ids and is filled with pieces, each <|bos|> and up to T tokens of one
document; a longer document is split.
"""

from functools import lru_cache

import numpy as np


@lru_cache(2)  # a step's rows may lie in two epochs
def shuffled(n: int, *key: int) -> np.ndarray:
    """A permutation of 0..n-1, int64, that depends on `key` (integers >= 0) alone.

    subtle: a resumed run must see the same order after an upgrade, and numpy promises never to
    change the raw words of PCG64, but not Generator.permutation.
    """
    words = np.random.PCG64(np.random.SeedSequence(key)).random_raw(n)
    return np.argsort(words, kind="stable")


def of_epochs(n: int, first: int, count: int, seed: int) -> np.ndarray:
    """Items first..first+count-1, int64 (count,), of endless epochs, each a permutation of 0..n-1.

    Example: of_epochs(3, 2, 2, seed): the last item of epoch 0, then the first of epoch 1.
    """
    epochs, places = np.divmod(np.arange(first, first + count), n)
    orders = {e: shuffled(n, seed, e, 0) for e in np.unique(epochs).tolist()}
    return np.array([orders[e][i] for e, i in zip(epochs, places, strict=True)])


def split_documents(offsets: np.ndarray, row_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(start, length) of every piece of the documents, which lie at offsets[i]:offsets[i + 1].

    Example: offsets [0, 5, 5, 7] with T = 3 -> starts [0, 3, 5], lengths [3, 2, 2].
    """
    lengths = np.diff(offsets)
    num_pieces = -(-lengths // row_tokens)
    document = np.repeat(np.arange(len(lengths)), num_pieces)
    first_piece = np.cumsum(num_pieces) - num_pieces
    nth = np.arange(len(document)) - first_piece[document]
    starts = offsets[:-1][document] + nth * row_tokens
    return starts, np.minimum(row_tokens, offsets[1:][document] - starts)


def best_fit_decreasing(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """The row, 0.., that each item is put into, largest first: the fullest one with room for it.

    Rows with r places left are in one list per r, and the non-empty lists are the bits of an
    integer: an item costs about a microsecond, however many rows there are.
    Example: sizes [4, 6, 3, 7] with capacity 10 -> 7 opens row 0, 6 row 1, 4 goes to row 1, 3 to
    row 0: [1, 1, 0, 0].
    """
    rows_with_room = [[] for _ in range(capacity + 1)]
    open_lists = num_rows = 0
    largest_first = np.argsort(-sizes, kind="stable")
    chosen = []
    for size in sizes[largest_first].tolist():
        fitting = open_lists >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                open_lists ^= 1 << room
        else:
            room, row = capacity, num_rows
            num_rows += 1
        rows_with_room[room - size].append(row)
        open_lists |= 1 << (room - size)
        chosen.append(row)
    rows = np.empty(len(sizes), dtype=np.int64)
    rows[largest_first] = chosen
    return rows


def plan_rows(offsets: np.ndarray, row_tokens: int) -> np.ndarray:
    """The packing plan of one shard: int64 (pieces, 3), start, length and row, in order of rows.

    Within a row the pieces are shuffled, or short documents would never stand at the start.
    """
    starts, lengths = split_documents(offsets, row_tokens)
    rows = best_fit_decreasing(lengths + 1, row_tokens + 1)
    order = shuffled(len(rows), 0)
    order = order[np.argsort(rows[order], kind="stable")]
    return np.stack([starts, lengths, rows], axis=1)[order]


def row_bounds(plan: np.ndarray) -> np.ndarray:
    """Row i of a plan is made of plan[bounds[i]:bounds[i + 1]]."""
    num_rows = int(plan[-1, 2]) + 1 if len(plan) else 0
    return np.searchsorted(plan[:, 2], np.arange(num_rows + 1))


def cut_at_turns(
    offsets: np.ndarray, turn_ends: np.ndarray, max_tokens: int
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """(starts, ends) of the conversations that keep a turn within max_tokens, and counts.

    Conversation i lies at offsets[i]:offsets[i + 1] and is cut at the last of `turn_ends` (sorted,
    the places right after an assistant's turn) that fits.
    """
    starts, whole = offsets[:-1], offsets[1:]
    long = whole - starts > max_tokens
    turn_ends = np.concatenate([[0], turn_ends])
    limits = np.minimum(whole, starts + max_tokens)
    ends = turn_ends[np.searchsorted(turn_ends, limits, side="right") - 1]
    kept = ends > starts
    counts = {
        "conversations": int(kept.sum()),
        "of them cut at a turn": int((kept & long).sum()),
        "dropped because no turn fits": int((~kept & long).sum()),
        "dropped because the assistant says nothing": int((~kept & ~long).sum()),
    }
    return starts[kept], ends[kept], counts


def pad_widths(max_length: int) -> list[int]:
    """The widths that micro-batches of rows up to max_length are padded to: at most five, because a
    model is compiled for each; multiples of 64, but for the last.

    Example: pad_widths(2048) == [256, 512, 1024, 1536, 2048]
    """
    rounded = {-(-max_length * eighths // (8 * 64)) * 64 for eighths in (1, 2, 4, 6)}
    return [*sorted(width for width in rounded if width < max_length), max_length]
