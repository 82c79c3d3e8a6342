"""The engine against the naive generator, alone and in a crowd, with tools."""

import pytest
import torch

from nanochat.common import ConfigError
from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.answer_reader import AnswerReader
from nanochat.tokenizer import Tokenizer

PROMPTS = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [40, 41], [300, 17, 200]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["low lower lowest slow slower slowest"], 320)


def random_model(**overrides) -> GPT:
    """A tiny model whose output projections are not the zeros that training starts from."""
    shape = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_kv_head": 4, "head_dim": 16}
    model = GPT(GPTConfig(**{**shape, "vocab_size": 320, "sequence_len": 64, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15)
    return model


def chain_model(chain: list[int]) -> GPT:
    """A model that says the chain: after chain[i] comes chain[i + 1], by far the most likely.

    Blocks add nothing (their output projections are zero), embeddings are orthogonal, and row
    chain[i + 1] of the head is the embedding of chain[i].
    """
    shape = {"n_layer": 1, "n_embd": 320, "n_head": 20, "n_kv_head": 20, "head_dim": 16}
    model = GPT(GPTConfig(**shape, vocab_size=320, sequence_len=64))
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(320))
        model.lm_head.weight.zero_()
        for token, following in zip(chain, chain[1:], strict=False):
            model.lm_head.weight[following, token] = 10.0
    return model


def chain_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a script in which special tokens are named and all else is one token a byte."""
    ids, rest = [], text
    while rest:
        name = next((n for n in tokenizer.special_ids if rest.startswith(n)), None)
        ids.append(tokenizer.special(name) if name else ord(rest[0]))
        rest = rest[len(name or " ") :]
    assert len(set(ids)) == len(ids), "a chain can hold each token once"
    return ids


def collect(engine: Engine, prompts, num_samples=1, **options) -> list[list[list[int]]]:
    """Tokens by prompt and sample."""
    out = [[[] for _ in range(num_samples)] for _ in prompts]
    for i, s, token, _ in engine.generate(prompts, num_samples=num_samples, **options):
        out[i][s].append(token)
    return out


# ---------------------------------------------------------------- the slow twin


@pytest.mark.parametrize("kernels", ["", "torch"])
@pytest.mark.parametrize("n_kv_head, max_batch", [(4, 64), (2, 2), (1, 1)])
def test_greedy_tokens_equal_the_naive_generator(
    tokenizer, n_kv_head, max_batch, kernels, monkeypatch
):
    monkeypatch.setenv("NANOCHAT_CPU_KERNELS", kernels)
    model = random_model(n_kv_head=n_kv_head)
    naive = [list(model.generate(prompt, 12, temperature=0)) for prompt in PROMPTS]
    got = collect(
        Engine(model, tokenizer),
        PROMPTS,
        max_tokens=12,
        temperature=0,
        stop=(),
        max_batch=max_batch,
    )
    assert [samples[0] for samples in got] == naive


def test_logits_of_ragged_prompts_equal_those_of_each_alone(tokenizer):
    model = random_model()
    engine = Engine(model, tokenizer)
    together = engine.next_logits(PROMPTS)
    for row, prompt in zip(together, PROMPTS, strict=True):
        assert torch.allclose(row, model(torch.tensor([prompt]))[0, -1], atol=1e-5)


# ---------------------------------------------------------------- noise


@pytest.mark.parametrize("max_batch", [5, 64])
def test_a_sample_is_the_same_alone_and_in_a_crowd(tokenizer, max_batch):
    engine = Engine(random_model(), tokenizer)
    options = {"max_tokens": 10, "seed": 3, "top_k": 100}
    crowd = collect(engine, PROMPTS, 3, **options, max_batch=max_batch)
    for prompt, samples in zip(PROMPTS, crowd, strict=True):
        assert collect(engine, [prompt], 3, **options)[0] == samples
        assert collect(engine, [prompt], 1, **options)[0] == samples[:1]


def test_seeds_and_samples_differ_and_repeat(tokenizer):
    engine = Engine(random_model(), tokenizer)
    one, again, other = (
        collect(engine, [[5]], 3, max_tokens=10, stop=(), seed=seed)[0] for seed in (1, 1, 2)
    )
    assert one == again
    assert len({tuple(sample) for sample in one + other}) == 6
    assert all(len(sample) == 10 for sample in one)


# ---------------------------------------------------------------- ends


def test_a_row_ends_before_a_stop_id(tokenizer):
    chain = chain_of(tokenizer, "<|assistant_start|>hi!<|assistant_end|>abc")
    engine = Engine(chain_model(chain), tokenizer)
    assert collect(engine, [chain[:1]], max_tokens=9, temperature=0) == [[[ord(c) for c in "hi!"]]]
    stop = (ord("i"),)
    assert collect(engine, [chain[:1]], max_tokens=9, temperature=0, stop=stop) == [[[ord("h")]]]


def test_bos_ends_a_row_too(tokenizer):
    chain = chain_of(tokenizer, "ab<|bos|>c")
    assert Engine(chain_model(chain), tokenizer).complete(
        [[ord("a")]], max_tokens=9, temperature=0
    ) == [["b"]]


def test_a_full_context_ends_a_row(tokenizer):
    engine = Engine(random_model(), tokenizer)
    prompts = [[1] * 60, [1] * 63, [1] * 3]
    got = collect(engine, prompts, max_tokens=8, stop=())
    assert [len(samples[0]) for samples in got] == [4, 1, 8]


@pytest.mark.parametrize(
    "prompt, options, message",
    [
        ([1] * 64, {}, r"prompt 1 has 64 tokens; a context of 64"),
        ([], {}, r"prompt 1 has 0 tokens"),
        ([1], {"max_tokens": 0}, r"max_tokens is 0"),
        ([1], {"num_samples": 0}, r"num_samples is 0"),
        ([1], {"temperature": -1}, r"temperature is -1"),
    ],
)
def test_impossible_requests_are_refused_before_any_token(tokenizer, prompt, options, message):
    engine = Engine(random_model(), tokenizer)
    with pytest.raises(ConfigError, match=message):
        engine.generate([[1], prompt], **{"max_tokens": 5, **options})


def test_ended_rows_cost_nothing_and_a_prompt_is_read_once(tokenizer):
    chain = chain_of(tokenizer, "abcdefgh<|assistant_end|>")
    engine = Engine(chain_model(chain), tokenizer)
    computed = []
    schedule = engine.scheduler.schedule

    def counted():
        step = schedule()
        computed.extend(len(chunk.tokens) for chunk in step.chunks)
        return step

    engine.scheduler.schedule = counted
    prompts = [[200 + i] * 20 + [ord(c)] for i, c in enumerate("fagbd")]
    got = collect(engine, prompts, 2, max_tokens=99, temperature=0, max_batch=4)
    assert ["".join(map(chr, samples[1])) for samples in got] == [
        "gh", "bcdefgh", "h", "cdefgh", "efgh",
    ]  # fmt: skip
    # 5 prompts of 21 tokens are read once; the second sample of each computes the last of them
    # again, for its logits; and each of the 2 * 20 tokens that came is computed once
    assert sum(computed) == 5 * 21 + 5 + 2 * 20
    assert engine.stats()["reused_tokens"] == 5 * 20


# ---------------------------------------------------------------- tools


def test_a_tool_call_is_run_and_its_result_forced_in(tokenizer):
    chain = chain_of(tokenizer, "<|assistant_start|><|python_start|>6*7<|python_end|>")
    chain += [1, *chain_of(tokenizer, "<|output_end|>ok<|assistant_end|>")]  # 1 is never heard
    engine = Engine(chain_model(chain), tokenizer)
    events = list(engine.generate([chain[:1]], max_tokens=40, temperature=0))
    result = [
        tokenizer.special("<|output_start|>"),
        *tokenizer.encode_ordinary("42"),
        tokenizer.special("<|output_end|>"),
    ]
    assert [token for _, _, token, forced in events if forced] == result
    assert engine.complete([chain[:1]], max_tokens=40, temperature=0) == [
        ["<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>ok"]
    ]


@pytest.mark.parametrize(
    "tool, output",
    [
        (None, "error: division by zero"),
        (lambda text: text[::-1], "0/1"),
        (lambda text: "<|bos|>", "<|bos|>"),
    ],
)
def test_a_failing_call_says_so_and_a_tool_can_be_given(tokenizer, tool, output):
    chain = chain_of(tokenizer, "x<|python_start|>1/0<|python_end|>")
    chain += [2, *chain_of(tokenizer, "<|output_end|><|assistant_end|>")]
    engine = Engine(chain_model(chain), tokenizer, *([tool] if tool else []))
    [[text]] = engine.complete([chain[:1]], max_tokens=40, temperature=0)
    assert text == f"<|python_start|>1/0<|python_end|><|output_start|>{output}<|output_end|>"


def test_rows_call_their_tools_apart(tokenizer):
    first = chain_of(tokenizer, "a<|python_start|>6*7<|python_end|>")
    engine = Engine(chain_model(first), tokenizer)
    prompts = [[ord("a")], [ord("7")]]
    [called], [not_called] = engine.complete(prompts, max_tokens=8, temperature=0)
    assert called.startswith("<|python_start|>6*7<|python_end|><|output_start|>4")
    assert "<|output_start|>" not in not_called  # an end without a start calls nothing


def test_max_tokens_counts_forced_ones(tokenizer):
    chain = chain_of(tokenizer, "a<|python_start|>6*7<|python_end|>")
    engine = Engine(chain_model(chain), tokenizer)
    tokens = collect(engine, [[ord("a")]], max_tokens=6, temperature=0)[0][0]
    assert tokens == [*chain[1:], tokenizer.special("<|output_start|>")]


# ---------------------------------------------------------------- reading answers, fitting prompts


def test_an_answer_is_read_back_into_parts_whole_characters_at_a_time(tokenizer):
    text = "Is é<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>\u20ac!"
    ids = [*"Is é".encode(), *tokenizer.encode(text.removeprefix("Is é"))]
    reader = AnswerReader(tokenizer)
    read = [(reader.kind, reader.push(token), reader.call) for token in ids]
    assert [piece for _, piece, _ in read[:5]] == ["I", "s", " ", "", "é"]
    assert "".join(piece for _, piece, _ in read) + reader.flush() == "Is é6*742€!"
    parts = {kind: "".join(p for k, p, _ in read if k == kind) for kind, _, _ in read}
    assert parts == {"text": "Is é€!", "python": "6*7", "python_output": "42"}
    assert [call for _, _, call in read if call is not None] == ["6*7"]


@pytest.mark.parametrize(
    "text, calls",
    [
        ("<|python_start|><|python_end|>", [""]),
        ("1<|python_end|>2<|python_start|>3", []),
        ("<|python_start|>1<|python_start|>2<|python_end|><|python_end|>", ["2"]),
        ("<|python_start|>1<|output_start|>2<|python_end|>", []),
    ],
)
def test_a_call_stands_between_its_own_marks(tokenizer, text, calls):
    reader, found = AnswerReader(tokenizer), []
    for token in tokenizer.encode(text):
        reader.push(token)
        found.append(reader.call)
    assert [call for call in found if call is not None] == calls


def test_a_character_that_was_never_completed_shows_at_the_end(tokenizer):
    reader = AnswerReader(tokenizer)
    assert [reader.push(token) for token in "€".encode()[:2]] == ["", ""]
    assert reader.flush() == "\ufffd"


# ---------------------------------------------------------------- weights


def test_refresh_brings_the_compute_copy_up_to_date(tokenizer):
    model = random_model()
    model.compute_dtype = torch.bfloat16
    engine = Engine(model, tokenizer)
    assert {weight.dtype for layer in engine.fused.layers for weight in layer} == {torch.bfloat16}
    with torch.no_grad():
        before = engine.next_logits([[3, 4]])[0]
        assert (before - model(torch.tensor([[3, 4]]))[0, -1]).abs().max() < 0.1
        model.lm_head.weight.neg_()
        model.model.layers[0].self_attn.v_proj.weight.neg_()
        assert torch.equal(engine.next_logits([[3, 4]])[0], before)
        engine.refresh()
        after = model(torch.tensor([[3, 4]]))[0, -1]
        assert (after - before).abs().max() > 0.5
        assert (engine.next_logits([[3, 4]])[0] - after).abs().max() < 0.1


def test_float32_weights_are_the_models_own_but_for_the_fused_ones(tokenizer):
    model = random_model()
    fused = Engine(model, tokenizer).fused
    block = model.model.layers[1]
    pairs = [(fused.head, model.lm_head), (fused.embedding, model.model.embed_tokens)]
    pairs += [(fused.layers[1].o, block.self_attn.o_proj), (fused.layers[1].fc2, block.mlp.fc2)]
    assert all(mine.data_ptr() == theirs.weight.data_ptr() for mine, theirs in pairs)
    with torch.no_grad():
        block.self_attn.k_proj.weight.neg_()
    assert not torch.equal(fused.layers[1].qkv[64:128], block.self_attn.k_proj.weight)
    fused.refresh()
    assert torch.equal(fused.layers[1].qkv[64:128], block.self_attn.k_proj.weight)


def test_no_more_slots_than_the_answers_at_hand_need(tokenizer):
    """With graphs the whole cache is reserved at once: 64 slots would take 14 GB at depth 20."""
    engine = Engine(random_model(), tokenizer, max_batch=3)
    engine.complete(PROMPTS[:3], max_tokens=2)
    assert len(engine.scheduler.slots) == 3
    engine.complete(PROMPTS[:2], max_tokens=2, num_samples=4)
    assert len(engine.scheduler.slots) == 8
