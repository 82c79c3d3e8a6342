"""Byte-level byte-pair encoding in plain Python: read this to learn BPE.

Text is cut into pieces (pieces.py), a piece into its bytes, ids 0..255. Training repeats one step:
find the pair of neighbouring ids that occurs most often and give it the next free id. Encoding
repeats those steps on a piece in the same order. core.cpp is the same, only faster, as tests prove.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise

from nanochat.bpe.pieces import Splitter

Pair = tuple[int, int]


def count_words(
    texts: Iterable[str], split_pattern: str, advance: Callable[[int], None] = lambda n: None
) -> Counter[bytes]:
    """How often each piece occurs; training needs nothing else of the text."""
    splitter, counts = Splitter(split_pattern), Counter()
    for text in texts:
        counts.update(splitter.pieces(text))
        advance(1)
    return counts


def merge(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    """`ids` with each occurrence of `pair`, from the left, made one id.

    Example: merge([97, 97, 97], (97, 97), 256) == [256, 97]
    """
    merged, i = [], 0
    while i < len(ids):
        found = i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair
        merged.append(new_id if found else ids[i])
        i += 2 if found else 1
    return merged


def learn_merges(
    words: Mapping[bytes, int], max_merges: int, advance: Callable[[int], None] = lambda n: None
) -> list[Pair]:
    """The pairs to merge, in order; the i-th makes id 256 + i. Fewer, if no pair is left.

    words: how often each piece occurs. Of pairs that occur equally often the smallest comes first.
    Example: learn_merges({b"ab": 3, b" ab": 1}, 9) == [(97, 98), (32, 256)]
    """
    pieces = [list(word) for word in words]
    weights = list(words.values())
    counts, where = Counter(), defaultdict(set)  # of each pair: how often, in which pieces
    for i, ids in enumerate(pieces):
        for pair in pairwise(ids):
            counts[pair] += weights[i]
            where[pair].add(i)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapify(heap)
    merges = []
    while len(merges) < max_merges and heap:
        bound, best = heappop(heap)
        if counts[best] != -bound:  # it was counted before other merges took some of it away
            if counts[best]:
                heappush(heap, (-counts[best], best))
            continue
        new_id, created = 256 + len(merges), set()
        for i in where.pop(best):
            for pair in pairwise(pieces[i]):
                counts[pair] -= weights[i]
            pieces[i] = merge(pieces[i], best, new_id)
            for pair in pairwise(pieces[i]):
                counts[pair] += weights[i]
                if new_id in pair:
                    where[pair].add(i)
                    created.add(pair)
        for pair in created:
            heappush(heap, (-counts[pair], pair))
        merges.append(best)
        advance(1)
    return merges


def encode_piece(piece: bytes, merges: Mapping[Pair, int]) -> list[int]:
    """The ids of one piece; merges: pair -> the id that it makes.

    Example: encode_piece(b" abab", {(97, 98): 256, (32, 256): 257}) == [257, 256]
    """
    ids = list(piece)
    while len(ids) > 1:
        first = min(pairwise(ids), key=lambda pair: merges.get(pair, len(merges) + 256))
        if first not in merges:
            break
        ids = merge(ids, first, merges[first])
    return ids


def encode(text: str, merges: Mapping[Pair, int], splitter: Splitter) -> list[int]:
    """The ids of a text, piece by piece."""
    return [i for piece in splitter.pieces(text) for i in encode_piece(piece, merges)]


def token_bytes(merges: Iterable[Pair]) -> list[bytes]:
    """The bytes that each id stands for; joined over ids they are the text.

    Example: token_bytes([(104, 105)])[256] == b"hi"
    """
    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens
