"""The cache and the inference model against the whole sequence computed anew by gpt.py."""

import pytest
import torch

from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.fused_model import FusedModel
from nanochat.inference.kv_cache import GROW_BY, AttentionBatch, KVCache, padded_size
from nanochat.inference.scheduler import Chunk


def random_model(**overrides) -> GPT:
    """A tiny model whose output projections are not the zeros that training starts from."""
    shape = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_kv_head": 4, "head_dim": 16}
    model = GPT(GPTConfig(**{**shape, "vocab_size": 320, "sequence_len": 512, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model.requires_grad_(False)


class Reader:
    """Reads tokens into slots of a cache, several at a time, and keeps what every slot should
    hold."""

    def __init__(self, model: GPT, slots: int = 4, room: int = 64, tolerance: float = 1e-5):
        self.model, self.fused, self.tolerance = model, FusedModel(model), tolerance
        self.cache = KVCache(model.config, "cpu", model.compute_dtype)
        self.cache.reserve(slots, room)
        self.held = {slot: [] for slot in range(slots)}

    def check(self, new: dict[int, list[int]]) -> None:
        """One pass that reads `new`, by slot; its features are those of the whole sequences."""
        chunks = [Chunk(slot, len(self.held[slot]), ids) for slot, ids in new.items()]
        self.cache.reserve(1 + max(new), max(c.start + len(c.tokens) for c in chunks))
        step = AttentionBatch.of_chunks(chunks, "cpu", self.cache)
        flat = [id for ids in new.values() for id in ids]
        flat += [0] * (len(step.positions) - len(flat))
        features = self.fused.features(torch.tensor(flat), step)
        row = 0
        for slot, ids in new.items():
            self.held[slot] = self.held[slot] + ids
            whole = self.model.features(torch.tensor([self.held[slot]]))[0]
            mine, theirs = features[row : row + len(ids)], whole[-len(ids) :]
            assert torch.allclose(mine, theirs, rtol=1e-5, atol=self.tolerance)
            row += len(ids)


def ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 320, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("n_kv_head", [4, 1])
@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 1, 1, 5], [1, 11]])
def test_any_way_of_reading_gives_the_features_of_the_whole(n_kv_head, chunks):
    reader = Reader(random_model(n_kv_head=n_kv_head))
    whole = ids(12)
    for size in chunks:
        reader.check({2: whole[:size]})
        whole = whole[size:]


@pytest.mark.parametrize("n_kv_head", [4, 2])
def test_ragged_streams_share_a_pass_and_see_their_own_tokens_only(n_kv_head):
    reader = Reader(random_model(n_kv_head=n_kv_head), slots=6)
    reader.check({0: ids(3, 1), 1: ids(9, 2), 2: ids(2, 3), 4: ids(5, 4)})
    reader.check({0: ids(1, 5), 1: ids(1, 6), 2: ids(1, 7)})  # one attention call
    reader.check({1: ids(1, 8), 2: ids(1, 9), 4: ids(1, 10), 0: ids(6, 11)})  # three
    reader.check({3: ids(1, 12), 4: ids(1, 13), 0: ids(20, 14), 1: ids(2, 15), 5: ids(70, 16)})


def test_bfloat16_features_are_close_to_those_of_the_whole():
    model = random_model(n_embd=128, n_head=2, n_kv_head=1, head_dim=64)
    model.compute_dtype = torch.bfloat16
    reader = Reader(model, slots=6, tolerance=0.15)
    reader.check({0: ids(3, 1), 1: ids(9, 2), 4: ids(5, 4)})
    reader.check({0: ids(1, 5), 1: ids(1, 6), 4: ids(1, 7), 2: ids(8, 8)})
    reader.check({0: ids(1, 9), 1: ids(1, 10), 2: ids(1, 11), 4: ids(1, 12)})
    reader.check({4: ids(1, 13)})


def test_a_pass_without_a_cache_reads_whole_sequences():
    model = random_model()
    fused, lengths = FusedModel(model), [3, 1, 1, 7]
    chunks = [Chunk(i, 0, ids(n, i)) for i, n in enumerate(lengths)]
    step = AttentionBatch.of_chunks(chunks, "cpu")
    flat = [id for chunk in chunks for id in chunk.tokens]
    features = fused.features(torch.tensor(flat + [0] * (len(step.positions) - len(flat))), step)
    wholes = [model.features(torch.tensor([chunk.tokens]))[0] for chunk in chunks]
    assert torch.allclose(features[: len(flat)], torch.cat(wholes), atol=1e-5)


def test_a_copied_prefix_goes_on_separately():
    reader = Reader(random_model())
    reader.check({0: ids(10)})
    reader.cache.copy(0, 3, 6)
    reader.held[3] = reader.held[0][:6]
    reader.check({0: [7], 3: [8]})
    reader.check({0: [1, 2], 3: [1, 2, 3]})


def test_a_slot_taken_again_shows_nothing_of_its_past():
    reader = Reader(random_model())
    reader.check({1: ids(20)})
    reader.held[1] = reader.held[1][:2]  # its first two tokens serve another stream
    for layer in reader.cache.layers:
        layer[:, 1, :, 2:] = 1e4
    reader.check({1: [5]})
    reader.check({1: [6, 7]})


def test_the_cache_grows_and_keeps_what_it_holds():
    reader = Reader(random_model(), slots=1, room=8)
    assert reader.cache.room == GROW_BY
    reader.check({0: ids(GROW_BY - 1)})
    for i in range(3):
        reader.check({0: ids(1, i)})
    assert reader.cache.room == 2 * GROW_BY
    reader.held |= {1: [], 2: []}
    reader.check({1: ids(4), 2: ids(3)})
    reader.check({0: [1], 1: [2], 2: [3]})
    assert not reader.cache.reserve(2, 100)


def test_a_pass_of_fixed_shape_computes_the_same():
    reader = Reader(random_model(), slots=4)
    reader.check({0: ids(9, 1), 1: ids(3, 2), 3: ids(6, 3)})
    idle = reader.cache.room - 1
    step = AttentionBatch.of_slots(torch.tensor([9, 3, idle, 6]), 32, reader.cache)
    features = reader.fused.features(torch.tensor([5, 6, 0, 7]), step)
    for slot, new in ((0, 5), (1, 6), (3, 7)):
        reader.held[slot].append(new)
        whole = reader.model.features(torch.tensor([reader.held[slot]]))[0, -1]
        assert torch.allclose(features[slot], whole, atol=1e-5)
    reader.check({0: [1], 1: [2], 2: [3], 3: [4]})  # the idle row left slot 2 alone


def test_passes_have_few_sizes():
    assert [padded_size(n) for n in (1, 8, 9, 64, 65, 256)] == [1, 8, 16, 64, 128, 256]
    assert len({padded_size(n) for n in range(1, 1025)}) == 8 + 7 + 15
