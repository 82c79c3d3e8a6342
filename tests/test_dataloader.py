"""dataloader.py: rows, their order, and batches that resume exactly."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import dataloader
from nanochat.common import ConfigError, DataError
from nanochat.conversation import render
from nanochat.data.token_shards import TokenShard, TokenShards, tokenize_conversations
from nanochat.dataloader import (
    PackedRows,
    PaddedRows,
    batches,
    pad_widths,
)
from nanochat.tokenizer import Tokenizer

BOS = 9000
TURN_END = 9001


def shards_of(*lengths_per_shard) -> TokenShards:
    """Shards with documents of these lengths; every token of all of them is another number."""
    shards, first = [], 0
    for lengths in lengths_per_shard:
        offsets = np.cumsum([0, *lengths])
        tokens = np.arange(first, first + offsets[-1]).astype(np.uint16)
        shards.append(TokenShard(tokens, offsets))
        first += int(offsets[-1])
    return TokenShards("numbers", shards, BOS)


def chats_of(*lengths, turn_ends) -> TokenShards:
    """Conversations of these lengths; token t is t, or TURN_END right before a place in turn_ends.

    Loss is taken on every second token and on TURN_END.
    """
    offsets = np.cumsum([0, *lengths])
    tokens = np.arange(offsets[-1]).astype(np.uint16)
    tokens[np.array(turn_ends) - 1] = TURN_END
    mask = ((tokens % 2 == 0) | (tokens == TURN_END)).astype(np.uint8)
    return TokenShards("chats", [TokenShard(tokens, offsets, mask)], BOS, TURN_END)


def epoch(rows, n: int) -> list[tuple[list[int], list[int]]]:
    indices = range(n * len(rows), (n + 1) * len(rows))
    return [(inputs.tolist(), targets.tolist()) for inputs, targets in map(rows.row, indices)]


# ---------------------------------------------------------------- packed rows


def test_packed_rows_by_hand():
    """Documents of 3, 6, 1 with T = 4: pieces 3, 4 and 2, 1; rows of 5 places [4], [3], [2, 1]."""
    rows = PackedRows(shards_of([3, 6, 1]), row_tokens=4, seed=1)
    full = ([BOS, 3, 4, 5], [3, 4, 5, 6])
    short = ([BOS, 0, 1, 2], [0, 1, 2, -1])
    mixed = ([BOS, 7, 8, BOS], [7, 8, BOS, 9])
    mirrored = ([BOS, 9, BOS, 7], [9, BOS, 7, 8])
    found = epoch(rows, 0)
    assert len(rows) == 3
    assert full in found and short in found and (mixed in found or mirrored in found)
    # one place of 15 is empty; of 10 tokens two stand in another row than their document's first
    assert "3 rows of 4 tokens: 6.67% padding, 20.00% of tokens" in rows.describe()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 30), max_size=8), min_size=1, max_size=6),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(0, 2),
)
def test_an_epoch_has_every_token_once_as_a_target(lengths, row_tokens, mix_shards, which):
    shards = shards_of(*lengths)
    if shards.num_tokens == 0:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataloader, "MIXED_SHARDS", mix_shards)
        found = epoch(PackedRows(shards, row_tokens, seed=5), which)
    seen = Counter()
    for inputs, targets in found:
        assert len(inputs) == len(targets) == row_tokens
        assert inputs[0] == BOS
        for i, target in enumerate(targets):
            assert target == -1 or i == row_tokens - 1 or inputs[i + 1] == target
            if target not in (-1, BOS):
                # what comes before is <|bos|> or the token before, of the same document
                assert inputs[i] in (BOS, target - 1)
        assert -1 not in targets[: targets.index(-1)] if -1 in targets else True
        seen.update(t for t in targets if t not in (-1, BOS))
    assert seen == Counter(range(shards.num_tokens))


def test_epochs_differ_and_repeat_exactly():
    lengths = [[5, 9, 2, 30, 7] * 4] * 3
    rows = PackedRows(shards_of(*lengths), row_tokens=8, seed=3)
    first, second = epoch(rows, 0), epoch(rows, 1)
    assert first != second
    assert sorted(first) == sorted(second)
    again = PackedRows(shards_of(*lengths), row_tokens=8, seed=3)
    assert epoch(again, 1) == second  # asked for without the epoch before
    assert epoch(again, 0) == first
    assert epoch(PackedRows(shards_of(*lengths), row_tokens=8, seed=4), 0) != first


def test_rows_of_shards_are_mixed():
    """With two shards in one window, both are met early, which is what a mixture needs."""
    rows = PackedRows(shards_of([7] * 50, [7] * 50), row_tokens=7, seed=0)
    early = [rows.row(i)[1][0] < 350 for i in range(20)]
    assert 4 < sum(early) < 16


def test_first_rows_plan_only_the_first_shards(monkeypatch):
    monkeypatch.setattr(dataloader, "MIXED_SHARDS", 2)
    rows = PackedRows(shards_of(*[[7] * 3] * 10), row_tokens=7, seed=0)
    rows.row(0)
    assert len(rows._sizes) == 2


def test_masked_loss_in_packed_conversations():
    chats = chats_of(4, 2, turn_ends=[4, 6])
    masked = epoch(PackedRows(chats, row_tokens=7, seed=0, mask_loss=True), 0)
    unmasked = epoch(PackedRows(chats, row_tokens=7, seed=0), 0)
    a, b = [0, 1, 2, TURN_END], [4, TURN_END]
    assert unmasked in (
        [([BOS, *a, BOS, 4], [*a, BOS, *b])],
        [([BOS, *b, BOS, 0, 1, 2], [*b, BOS, *a])],
    )
    a[1] = -1  # the odd token is masked, and so is the <|bos|> between the conversations
    assert masked[0][0] == unmasked[0][0]
    assert masked[0][1] in ([*a, -1, *b], [*b, -1, *a])


def test_impossible_packed_rows_are_refused():
    with pytest.raises(DataError, match="numbers: found no token"):
        PackedRows(shards_of([0, 0], []), row_tokens=4, seed=0)
    with pytest.raises(ConfigError, match="mask_loss is for conversations"):
        PackedRows(shards_of([3]), row_tokens=4, seed=0, mask_loss=True)


# ---------------------------------------------------------------- padded rows


def test_padded_rows_by_hand():
    # 3 tokens, whole; 6 with turns after 2 and 6, cut at 2; 5 with its turn after 5, dropped;
    # 2 without a turn of the assistant, dropped.
    chats = chats_of(3, 6, 5, 2, turn_ends=[3, 5, 9, 14])
    rows = PaddedRows(chats, seq_len=4, seed=0, rows_per_step=1)
    assert sorted(epoch(rows, 0)) == sorted(
        [
            ([BOS, 0, 1], [0, -1, TURN_END]),
            ([BOS, 3], [-1, TURN_END]),
        ]
    )
    assert list(rows.counts.values()) == [2, 1, 1, 1]


def test_conversations_that_all_drop_are_refused():
    with pytest.raises(DataError, match="chats: no conversation .* within 4 tokens"):
        PaddedRows(chats_of(5, turn_ends=[5]), seq_len=4, seed=0, rows_per_step=1)


def cut_at_turn(conversation: dict, tokenizer: Tokenizer, max_tokens: int) -> dict | None:
    """The longest prefix of whole turns that renders to at most so many ids; None if none does."""
    messages = conversation["messages"]
    for n in range(len(messages), 0, -1):
        cut = {"messages": messages[:n]}
        ids, _ = render(cut, tokenizer)
        if messages[n - 1]["role"] == "assistant" and len(ids) <= max_tokens:
            return cut
    return None


def test_real_conversations_are_cut_as_cut_at_turn_does(capsys):
    tokenizer = Tokenizer.train(["some text to learn from"], vocab_size=320)
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": "word " * (i % 5 + 1)} for i in range(12)
    ]
    chats = [{"messages": messages[: 2 + 2 * i]} for i in range(5)] + [{"messages": messages[:1]}]
    rows = PaddedRows(tokenize_conversations(chats, tokenizer, name="chats"), 60, 0, 1)
    expected = []
    for chat in chats:
        if cut := cut_at_turn(chat, tokenizer, 61):
            ids, mask = render(cut, tokenizer)
            targets = [t if m else -1 for t, m in zip(ids[1:], mask[1:], strict=True)]
            expected.append((ids[:-1], targets))
    assert sorted(epoch(rows, 0)) == sorted(expected)
    assert rows.counts["of them cut at a turn"] > 0
    assert "chats: 5 conversations, " in capsys.readouterr().out


def many_chats(n: int) -> TokenShards:
    lengths = [2 + (i * 37) % 50 for i in range(n)]
    return chats_of(*lengths, turn_ends=np.cumsum(lengths))


def test_padded_epochs_have_every_conversation_once_in_another_order():
    rows = PaddedRows(many_chats(32), seq_len=64, seed=0, rows_per_step=4)
    epochs = [epoch(rows, n) for n in range(3)]
    assert all(sorted(one) == sorted(epochs[0]) for one in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = PaddedRows(many_chats(32), seq_len=64, seed=0, rows_per_step=4)
    assert epoch(again, 2) == epochs[2]


def two_tasks(n: int, seq_len: int, rows_per_step: int, seed: int = 7) -> PaddedRows:
    """One half of the conversations has 10 to 30 tokens, the other 150 to 500."""
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(10, 30, n // 2), rng.integers(150, 500, n // 2)])
    chats = chats_of(*lengths.tolist(), turn_ends=np.cumsum(lengths))
    return PaddedRows(chats, seq_len, seed, rows_per_step)


def test_a_step_is_a_random_sample_of_the_rows():
    """Of 32 rows as many are of either task as when a coin is thrown; targets vary as little."""
    rows = two_tasks(8_000, seq_len=512, rows_per_step=32)
    lengths = np.array([len(rows.row(i)[0]) for i in range(len(rows))]).reshape(-1, 32)
    long = (lengths > 100).sum(1)
    assert abs(long.mean() - 16) < 0.1 and abs(long.std() - np.sqrt(32 / 4)) < 0.3
    targets = np.array([(rows.row(i)[1] >= 0).sum() for i in range(len(rows))]).reshape(-1, 32)
    of_a_row = targets.std() / targets.mean()
    of_a_step = targets.sum(1).std() / targets.sum(1).mean()
    assert of_a_step == pytest.approx(of_a_row / np.sqrt(32), rel=0.15) and of_a_step < 0.2


def test_rows_are_sorted_inside_a_step_also_over_the_end_of_an_epoch():
    rows = PaddedRows(many_chats(101), seq_len=64, seed=0, rows_per_step=4)
    lengths = np.array([len(rows.row(i)[0]) for i in range(404)]).reshape(-1, 4)
    assert (np.diff(lengths) <= 0).all()
    first = lengths[:, 0].tolist()
    assert first != sorted(first) and first != sorted(first, reverse=True)
    seen = Counter(lengths.ravel().tolist())
    assert seen == Counter(4 * [2 + (i * 37) % 50 for i in range(101)])


def test_padding_is_small_and_widths_are_few(capsys):
    rows, at_once = two_tasks(4_000, seq_len=500, rows_per_step=32), 8
    some = list(islice(batches(rows, rows_per_step=32, device_batch_size=at_once), 500))
    places = sum(batch.inputs.numel() for batch in some)
    tokens = sum(len(rows.row(i)[0]) for i in range(500 * at_once))
    shuffled = np.random.default_rng(1).permutation([len(rows.row(i)[0]) for i in range(4000)])
    unsorted = at_once * shuffled.reshape(-1, at_once).max(1).sum()
    padding, without = 1 - tokens / places, 1 - tokens / unsorted
    with capsys.disabled():
        print(f"\npadding: {padding:.1%}; {without:.1%} if rows were not sorted inside a step")
    assert padding < 0.4 and padding < 0.7 * without
    assert {batch.inputs.shape[1] for batch in some} <= {64, 128, 256, 384, 500}


# ---------------------------------------------------------------- batches


def packed(n: int = 40) -> PackedRows:
    return PackedRows(shards_of([5, 11, 3, 8] * n, [6] * n), row_tokens=10, seed=7)


def padded() -> PaddedRows:
    return PaddedRows(many_chats(45), seq_len=50, seed=7, rows_per_step=8)


def take(n: int, rows, rank=0, world_size=1, **kwargs) -> list[tuple[list, list]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataloader, "rank_and_world", lambda: (rank, world_size))
        some = islice(batches(rows, **kwargs), n)
    return [(batch.inputs.tolist(), batch.targets.tolist()) for batch in some]


@pytest.mark.parametrize("make", [packed, padded])
@pytest.mark.parametrize("steps", [1, 7, 30])
def test_resuming_at_a_cursor_gives_the_same_batches(make, steps):
    sizes = {"rows_per_step": 8, "device_batch_size": 2}
    whole = take(40 * 4, make(), **sizes)
    resumed = take(40 * 4 - steps * 4, make(), cursor=steps * 8, **sizes)
    assert resumed == whole[steps * 4 :]


@pytest.mark.parametrize("make", [packed, padded])
def test_ranks_together_take_the_rows_of_one(make):
    rows = make()

    def steps(world_size, device_batch_size):
        """Valid rows of each of 12 steps, over all ranks, as a multiset."""
        per_step = 8 // (world_size * device_batch_size)
        out = [Counter() for _ in range(12)]
        for rank in range(world_size):
            sizes = {"device_batch_size": device_batch_size, "rank": rank, "cursor": 16}
            found = take(12 * per_step, rows, rows_per_step=8, world_size=world_size, **sizes)
            for i, (_, targets) in enumerate(found):
                for row in targets:
                    out[i // per_step][tuple(t for t in row if t != -1)] += 1
        return out

    one = steps(1, 8)
    assert one == steps(1, 1) == steps(2, 2) == steps(4, 2)
    assert [sum(step.values()) for step in one] == [8] * 12


def test_ranks_take_neighbouring_rows():
    """The example in the docstring: 8 rows a step, 2 ranks, 2 rows at once."""
    rows = packed()
    sizes = {"rows_per_step": 8, "device_batch_size": 2, "rank": 1, "world_size": 2}
    found = [inputs for inputs, _ in take(3, rows, **sizes)]
    expected = [[rows.row(i)[0].tolist() for i in pair] for pair in ((2, 3), (6, 7), (10, 11))]
    assert found == expected


@pytest.mark.parametrize(
    ("max_length", "widths"),
    [
        (2048, [256, 512, 1024, 1536, 2048]),
        (1000, [128, 256, 512, 768, 1000]),
        (256, [64, 128, 192, 256]),
        (64, [64]),
        (11, [11]),
    ],
)
def test_pad_widths(max_length, widths):
    assert pad_widths(max_length) == widths


@pytest.mark.parametrize(
    ("longest", "width"), [(9, 64), (64, 64), (65, 128), (150, 192), (195, 200)]
)
def test_rows_are_padded_to_the_next_width(longest, width):
    lengths = [3, longest, 2, 4]
    chats = chats_of(*lengths, turn_ends=np.cumsum(lengths))
    rows = PaddedRows(chats, seq_len=200, seed=0, rows_per_step=4)
    sizes = {"rows_per_step": 4, "device_batch_size": 4, "pad_id": 77}
    [(inputs, targets)] = take(1, rows, **sizes)
    for i in range(4):
        row_inputs, row_targets = (x.tolist() for x in rows.row(i))
        padding = width - len(row_inputs)
        assert inputs[i] == row_inputs + [77] * padding
        assert targets[i] == row_targets + [-1] * padding


def test_packed_rows_keep_their_length():
    batch = next(batches(packed(), rows_per_step=2, device_batch_size=2))
    assert batch.inputs.shape == batch.targets.shape == (2, 10)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_batches_are_those_of_the_cpu():
    sizes = {"rows_per_step": 8, "device_batch_size": 4}
    stream = batches(packed(), device="cuda", **sizes)
    for expected in islice(batches(packed(), **sizes), 30):
        batch = next(stream)
        assert batch.inputs.is_cuda and batch.targets.is_cuda
        assert torch.equal(batch.inputs.cpu(), expected.inputs)
        assert torch.equal(batch.targets.cpu(), expected.targets)
    stream.close()
