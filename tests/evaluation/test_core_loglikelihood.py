"""Scores of rows: by hand, and the fast way against one row at a time."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.core_eval import score_plainly
from nanochat.evaluation import core_loglikelihood
from nanochat.evaluation.core_loglikelihood import batches, jobs_of, score
from nanochat.evaluation.core_prompts import Example, Row
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.fused_model import FusedModel

V = 64


def random_model(seed=0, dtype=torch.float32, **overrides) -> FusedModel:
    """Everything random, so that attention and positions matter."""
    shape = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_kv_head": 2, "head_dim": 8}
    model = GPT(GPTConfig(**{**shape, "vocab_size": V, "sequence_len": 64, **overrides}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    model.compute_dtype = dtype
    return FusedModel(model)


def example(*rows, start):
    return Example(tuple(Row(np.array(ids), start) for ids in rows))


def assert_same(fast, plain):
    assert [len(one) for one in fast] == [len(one) for one in plain]
    for mine, other in zip(
        (s for e in fast for s in e), (s for e in plain for s in e), strict=True
    ):
        assert math.isclose(mine.loss, other.loss, rel_tol=1e-4, abs_tol=1e-5)
        assert mine.is_greedy == other.is_greedy


def test_the_loss_is_the_mean_over_the_scored_tokens_by_hand():
    model = random_model()
    ids = [5, 9, 3, 3, 60]
    log_p = model.master(torch.tensor([ids]))[0].log_softmax(-1)
    # ids 3 and 4 are scored: predicted after ids 2 and 3
    expected = -(log_p[2, 3] + log_p[3, 60]).item() / 2
    for scorer in (score, score_plainly):
        (found,) = scorer(model, [example(ids, start=3)], 64)[0]
        assert math.isclose(found.loss, expected, rel_tol=1e-5)


def test_likeliest_needs_every_scored_token():
    model = random_model()
    ids = [5, 9]
    for _ in range(3):
        ids.append(int(model.master(torch.tensor([ids]))[0, -1].argmax()))
    wrong_end = [*ids[:-1], (ids[-1] + 1) % V]
    wrong_first = [*ids[:2], (ids[2] + 1) % V, *ids[3:]]
    rows = [example(row, start=2) for row in (ids, wrong_end, wrong_first)]
    rows.append(example(wrong_first, start=4))
    for scorer in (score, score_plainly):
        found = [one[0].is_greedy for one in scorer(model, rows, 64)]
        assert found[:3] == [True, False, False]
        after = model.master(torch.tensor([wrong_first]))[0, 3].argmax()
        assert found[3] == (after == wrong_first[4])


@st.composite
def drawn_examples(draw):
    """Examples whose rows share a beginning, or only some tokens, or nothing."""
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draw(st.integers(1, 5))):
        beginning = rng.integers(0, V, draw(st.integers(1, 40)))
        rows, places = draw(st.integers(1, 4)), []
        for _ in range(rows):
            rest = rng.integers(0, V, draw(st.integers(1, 20)))
            ids = np.concatenate([beginning, rest]).astype(np.uint16)
            places.append(Row(ids, draw(st.integers(1, len(ids) - 1))))
        found.append(Example(tuple(places)))
    return found


@cache
def model_with(kv_heads: int) -> FusedModel:
    return random_model(n_kv_head=kv_heads)


@settings(max_examples=20, deadline=None)
@given(drawn_examples(), st.sampled_from([1, 100, 10_000]), st.sampled_from([2, 4]))
@pytest.mark.slow
def test_fast_equals_plain_on_any_rows_in_batches_of_any_size(examples, tokens_at_once, kv_heads):
    model = model_with(kv_heads)
    assert_same(score(model, examples, tokens_at_once), score_plainly(model, examples))


def test_chunks_of_the_head_change_nothing(monkeypatch):
    model = random_model()
    ids = np.random.default_rng(0).integers(0, V, (6, 61))
    examples = [example(*ids[:3], start=1), example(*ids[3:], start=20)]
    whole = score(model, examples, 1000)
    monkeypatch.setattr(core_loglikelihood, "LOGITS_AT_ONCE", 128 * V)
    assert score(model, examples, 1000) == whole


def test_a_shared_beginning_is_read_once():
    beginning = list(range(20))
    rows = [Row(np.array([*beginning, 30, 31]), 20), Row(np.array([*beginning, 40]), 20)]
    (job,) = jobs_of(7, rows, can_share=True)
    # 19 ids once; then id 19 and what follows but the last: 2 + 1
    assert (job.places, job.shared, job.rest) == ([(7, 0), (7, 1)], 19, 3)
    assert [j.rest for j in jobs_of(7, rows, can_share=False)] == [21, 20]
    short = [Row(np.array([1, 2, 3]), 2), Row(np.array([1, 2, 4]), 2)]
    assert [(j.shared, j.rest) for j in jobs_of(0, short, True)] == [(1, 2)]


def test_batches_hold_every_job_once_and_fit():
    rng = np.random.default_rng(1)
    jobs = []
    for e in range(50):
        beginning = list(rng.integers(0, V, rng.integers(1, 300)))
        rows = [Row(np.array([*beginning, n, *range(rng.integers(1, 50))]), 1 + len(beginning))
                for n in range(rng.integers(1, 4))]  # fmt: skip
        jobs += jobs_of(e, rows, True)
    found = batches(jobs, 1000)
    assert sorted(p for b in found for j in b for p in j.places) == sorted(
        p for j in jobs for p in j.places
    )
    for batch in found:
        width = max(j.shared for j in batch) + max(j.rest for j in batch)
        assert len(batch) == 1 or len(batch) * width <= 1000
    assert len(found) < len(jobs) / 2


def test_compute_dtype_is_the_models():
    model = random_model(dtype=torch.bfloat16)
    ids = np.random.default_rng(0).integers(0, V, (4, 30))
    examples = [example(*ids, start=25), example(ids[0], start=29)]
    fast, plain = score(model, examples, 500), score_plainly(model, examples)
    for mine, other in zip(
        (s for e in fast for s in e), (s for e in plain for s in e), strict=True
    ):
        assert math.isclose(mine.loss, other.loss, rel_tol=0.05)


def test_padding_that_is_longer_than_the_context():
    model = random_model(sequence_len=40)  # no multiple of what lengths are rounded to
    ids = np.random.default_rng(0).integers(0, V, (5, 40))
    ids[:4, :36] = ids[0, :36]
    examples = [example(*ids[:4], start=38), example(ids[4], start=1)]
    assert_same(score(model, examples, 1000), score_plainly(model, examples))


def test_float16_squares_beyond_its_range():
    model = GPT(random_model().config)
    for block in model.model.layers:
        block.mlp.fc1.weight.data *= 300  # squares beyond 65,504
        block.mlp.fc2.weight.data.normal_(std=1e-4)
    model.lm_head.weight.data.normal_()
    model.compute_dtype = torch.float16
    fused, examples = FusedModel(model), [example(list(range(20)), start=1)]
    (fast,), (plain,) = score(fused, examples, 500)[0], score_plainly(fused, examples)[0]
    assert math.isclose(fast.loss, plain.loss, rel_tol=0.01)
