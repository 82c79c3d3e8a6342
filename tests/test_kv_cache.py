"""The cache against the whole sequence computed anew."""

import pytest
import torch

from nanochat.gpt import GPT, GPTConfig
from nanochat.kv_cache import GROW_BY, KVCache


def random_model(**overrides) -> GPT:
    """A tiny model whose output projections are not the zeros that training starts from."""
    shape = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_kv_head": 4, "head_dim": 16}
    model = GPT(GPTConfig(**{**shape, "vocab_size": 320, "sequence_len": 512, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model.requires_grad_(False)


def new_cache(model: GPT, rows: int) -> KVCache:
    return KVCache(model.config, rows, "cpu", torch.float32)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, 320, shape)


@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 1, 1, 5], [1, 11]])
def test_any_way_of_reading_gives_the_features_of_the_whole(n_kv_head, chunks):
    model = random_model(n_kv_head=n_kv_head)
    ids = tokens(3, 12)
    cache = new_cache(model, 3)
    parts = [model.features(part, cache) for part in ids.split(chunks, dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), model.features(ids), atol=1e-5)
    assert cache.lengths == [12, 12, 12] and cache.lengths_on_device.tolist() == [12, 12, 12]


def test_ragged_rows_see_their_own_tokens_only():
    model, lengths = random_model(), [3, 9, 1]
    ids, new = tokens(3, 9), tokens(3, 2)
    cache = new_cache(model, 3)
    model.features(ids, cache)
    cache.set_lengths(lengths)
    got = model.features(new, cache)
    for row, length in enumerate(lengths):
        whole = torch.cat([ids[row, :length], new[row]])[None]
        assert torch.allclose(got[row], model.features(whole)[0, -2:], atol=1e-5)


def test_select_drops_reorders_and_replicates():
    model = random_model()
    ids, new = tokens(3, 5), tokens(4, 1)
    cache = new_cache(model, 3)
    model.features(ids, cache)
    cache.set_lengths([5, 4, 3])
    cache.select([2, 0, 0, 2])
    assert cache.lengths == [3, 5, 5, 3]
    got = model.features(new, cache)
    for row, (source, length) in enumerate([(2, 3), (0, 5), (0, 5), (2, 3)]):
        whole = torch.cat([ids[source, :length], new[row]])[None]
        assert torch.allclose(got[row], model.features(whole)[:, -1], atol=1e-5)


def test_replicated_rows_go_separate_ways():
    model = random_model()
    ids = tokens(1, 4)
    cache = new_cache(model, 1)
    model.features(ids, cache)
    cache.select([0, 0])
    model.features(torch.tensor([[7], [8]]), cache)
    got = model.features(torch.tensor([[1], [1]]), cache)[:, 0]
    for row, second in enumerate((7, 8)):
        whole = torch.cat([ids[0], torch.tensor([second, 1])])[None]
        assert torch.allclose(got[row], model.features(whole)[0, -1], atol=1e-5)


def test_append_adds_rows_of_another_length():
    model = random_model()
    old, young, new = tokens(1, 6), tokens(2, 3), tokens(3, 1)
    cache, joining = new_cache(model, 1), new_cache(model, 2)
    model.features(old, cache)
    model.features(young, joining)
    cache.append(joining)
    assert cache.lengths == [6, 3, 3]
    got = model.features(new, cache)[:, 0]
    for row, before in enumerate((old[0], young[0], young[1])):
        whole = torch.cat([before, new[row]])[None]
        assert torch.allclose(got[row], model.features(whole)[0, -1], atol=1e-5)


def test_the_cache_grows_and_keeps_what_it_holds():
    model = random_model()
    ids = tokens(1, GROW_BY + 3)
    cache = new_cache(model, 1)
    model.features(ids[:, : GROW_BY - 1], cache)
    parts = [model.features(ids[:, i : i + 1], cache) for i in range(GROW_BY - 1, GROW_BY + 3)]
    assert cache.keys[0].shape[2] == 2 * GROW_BY
    whole = model.features(ids)[:, -4:]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)


def test_what_padding_left_behind_never_reaches_the_output():
    model = random_model()
    ids = tokens(1, 6)
    cache = new_cache(model, 1)
    model.features(ids, cache)
    cache.set_lengths([2])
    for tensor in (*cache.keys, *cache.values):
        tensor[:, :, 2:] = 1e4
    got = model.features(torch.tensor([[5]]), cache)
    whole = torch.cat([ids[:, :2], torch.tensor([[5]])], dim=1)
    assert torch.allclose(got, model.features(whole)[:, -1:], atol=1e-5)
