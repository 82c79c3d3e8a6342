"""The engine step by step: requests that come and go, their events, reuse, tools, cancelling."""

import random
import threading

import pytest
import torch

from nanochat.common import ConfigError
from nanochat.engine import Engine, Request, SamplingParams, TokenOutput
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.cuda_graphs import DecodeGraphs
from nanochat.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["low lower lowest slow slower slowest"], 320)


def random_model(**overrides) -> GPT:
    """A tiny model whose output projections are not the zeros that training starts from."""
    shape = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_kv_head": 4, "head_dim": 16}
    model = GPT(GPTConfig(**{**shape, "vocab_size": 320, "sequence_len": 128, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15)
    return model


def saying(text: bytes, **also: float) -> GPT:
    """A model that says the bytes of `text`, all different, one after the other: see test_engine's
    chain_model. also: "ab"=4.0 makes b follow a with such a weight (10 is the chain's)."""
    shape = {"n_layer": 1, "n_embd": 320, "n_head": 20, "n_kv_head": 20, "head_dim": 16}
    model = GPT(GPTConfig(**shape, vocab_size=320, sequence_len=64))
    pairs = {pair: 10.0 for pair in zip(text, text[1:], strict=False)}
    pairs |= {tuple(name.encode()): weight for name, weight in also.items()}
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(320))
        model.lm_head.weight.zero_()
        for (token, following), weight in pairs.items():
            model.lm_head.weight[following, token] = weight
    return model


def run(engine: Engine, *requests: Request) -> list[list[TokenOutput]]:
    """All events of each request."""
    events: dict[int, list[TokenOutput]] = {engine.add(request): [] for request in requests}
    while engine.has_work:
        for event in engine.step():
            events[event.id].append(event)
    return list(events.values())


class Uncaptured(DecodeGraphs):
    """The same work kernel by kernel, on any device."""

    def _capture(self, rows: int, read: int):
        return lambda: self._compute(rows, read)


def tokens(events: list[TokenOutput]) -> list[int]:
    return [event.token for event in events if event.token is not None]


# ---------------------------------------------------------------- the slow twins


@pytest.mark.parametrize("kernels", ["", "torch"])
def test_requests_that_join_and_leave_at_random_equal_the_naive_generator(
    tokenizer, kernels, monkeypatch
):
    monkeypatch.setenv("NANOCHAT_CPU_KERNELS", kernels)
    chance = random.Random(len(kernels))
    model = random_model()
    engine = Engine(model, tokenizer, max_batch=3)
    engine.scheduler.chunk = 7
    shared = [chance.randrange(256) for _ in range(20)]
    prompts = [
        shared[: chance.choice([0, 20])] + [chance.randrange(256) for _ in range(n)]
        for n in (1, 40, 3, 17, 2, 60, 9, 30)
    ]
    got: dict[int, list[int]] = {}
    prompt_of: dict[int, list[int]] = {}
    cancelled = set()
    left = list(prompts)
    while left or engine.has_work:
        if left and chance.random() < 0.5:
            prompt = left.pop()
            id = engine.add(Request(prompt, 12, GREEDY, stop=(), tools=False))
            got[id], prompt_of[id] = [], prompt
        if got and chance.random() < 0.05:
            id = chance.choice(list(got))
            cancelled.add(id)
            engine.cancel(id)
        for event in engine.step():
            got[event.id] += tokens([event])
    assert len(got) == len(prompts)
    for id, prompt in prompt_of.items():
        naive = list(model.generate(prompt, 12, temperature=0))
        assert got[id] == (naive[: len(got[id])] if id in cancelled else naive)


def test_a_prefix_can_be_copied_before_there_is_time_to_go_on_with_it(tokenizer):
    model = random_model()
    engine = Engine(model, tokenizer)
    engine.scheduler.chunk = 4
    shared = list(range(20))
    prompts = [[*shared, 50], [60] * 90, [61] * 40, [*shared, *range(100, 180)]]
    asked = [Request(prompt, 3, GREEDY, stop=(), tools=False) for prompt in prompts]
    got = run(engine, *asked)
    for prompt, events in zip(prompts, got, strict=True):
        assert tokens(events) == list(model.generate(prompt, 3, temperature=0))
    assert engine.stats()["reused_tokens"] == 20


def test_logits_are_the_same_alone_and_in_a_crowd(tokenizer):
    model = random_model()
    model.compute_dtype = torch.bfloat16
    tolerance = 0.25
    prompts = [[7 * i % 256, 5, 6] * (1 + i % 4) for i in range(6)]
    asked = [Request(one, 12, GREEDY, stop=(), logprobs=2, tools=False) for one in prompts]
    engine = Engine(model, tokenizer)
    engine.scheduler.chunk = 5
    crowd = run(engine, *asked)
    engine = Engine(model, tokenizer, max_batch=1)
    for request, together in zip(asked, crowd, strict=True):
        [alone] = run(engine, request)
        for one, other in zip(alone, together, strict=True):
            (_, best), (_, second) = one.top_logprobs
            if one.token != other.token:  # then they are no longer comparable
                assert best - second < tolerance
                break
            assert abs(one.logprob - other.logprob) < tolerance


def test_noise_does_not_depend_on_the_crowd_or_on_the_others_settings(tokenizer):
    model = random_model()
    asked = [
        Request([9, 8], 10, SamplingParams(0.9, top_k=20, seed=3), 0, stop=()),
        Request([9, 8], 10, SamplingParams(0.9, top_k=20, seed=3), 1, stop=()),
        Request([9, 8], 10, SamplingParams(1.2, top_p=0.8, seed=3), stop=()),
        Request([9, 8], 10, SamplingParams(seed=4, min_p=0.02), stop=()),
        Request([7] * 30, 10, SamplingParams(seed=3, repetition_penalty=1.3), stop=()),
    ]
    crowd = run(Engine(model, tokenizer), *asked)
    alone = [run(Engine(model, tokenizer), request)[0] for request in asked]
    assert [tokens(one) for one in crowd] == [tokens(one) for one in alone]
    assert len({tuple(tokens(one)) for one in crowd}) == 5


def test_steps_of_fixed_shape_equal_the_ordinary_ones(tokenizer):
    model = random_model()
    asked = [
        Request([i] * (1 + 3 * i), 8 + i, params, i, stop=(), logprobs=3, tools=False)
        for i, params in enumerate([GREEDY, SamplingParams(seed=1), SamplingParams(0.7, 9, 0.9),
                                    SamplingParams(top_p=0.5), SamplingParams(min_p=0.1)])
    ]  # fmt: skip
    ordinary = run(Engine(model, tokenizer), *asked)
    engine = Engine(model, tokenizer, max_batch=5)
    engine.graphs = Uncaptured(engine.fused, engine.cache)
    fixed = run(engine, *asked)
    assert [tokens(one) for one in fixed] == [tokens(one) for one in ordinary]
    for one, other in zip(sum(fixed, []), sum(ordinary, []), strict=True):
        assert abs(one.logprob - other.logprob) < 1e-4


# ---------------------------------------------------------------- reuse


def test_the_next_turn_is_not_read_again_and_its_logits_are_the_same(tokenizer):
    model = random_model()
    engine = Engine(model, tokenizer)
    first = [3] * 5 + list(range(40, 60))
    [events] = run(engine, Request(first, 8, GREEDY, stop=()))
    second = [*first, *tokens(events), 70, 71, 72]
    again = Request(second, 8, GREEDY, stop=(), logprobs=5)
    before = engine.stats()["read_tokens"]
    [reused] = run(engine, again)
    assert engine.stats()["read_tokens"] - before == 4  # the answer's last token was not computed
    [fresh] = run(Engine(model, tokenizer), again)
    assert tokens(reused) == tokens(fresh)
    for one, other in zip(reused, fresh, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert [i for i, _ in one.top_logprobs] == [i for i, _ in other.top_logprobs]


def test_after_new_weights_nothing_is_reused(tokenizer):
    model = random_model()
    engine = Engine(model, tokenizer)
    request = Request(list(range(30)), 5, GREEDY, stop=(), logprobs=1)
    run(engine, request)
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.neg_()
    engine.refresh()
    [got] = run(engine, request)
    [fresh] = run(Engine(model, tokenizer), request)
    assert [e.logprob for e in got] == pytest.approx([e.logprob for e in fresh], abs=1e-5)
    assert engine.stats()["reused_tokens"] == 0


def test_a_step_that_breaks_off_leaves_nothing_wrong_behind(tokenizer, monkeypatch):
    model = random_model()
    engine = Engine(model, tokenizer)
    id = engine.add(Request(list(range(30)), 5, GREEDY, stop=()))
    first = engine.step()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("nanochat.engine.sample", interrupted)
        engine.step()
    events = first
    while engine.has_work:
        events += engine.step()
    assert {event.id for event in events} == {id}
    assert tokens(events) == list(model.generate(list(range(30)), 5, temperature=0))


# ---------------------------------------------------------------- leaving


def test_a_cancelled_request_frees_its_slot_within_one_step(tokenizer):
    engine = Engine(random_model(), tokenizer, max_batch=1)
    first, second = (engine.add(Request([i] * 3, 9, GREEDY, stop=())) for i in (1, 2))
    assert [event.id for event in engine.step()] == [first]
    assert engine.stats()["waiting"] == 1
    engine.cancel(first)
    gone, came = engine.step()
    assert (gone.id, gone.token, gone.finish) == (first, None, "cancelled")
    assert came.id == second and came.token is not None
    engine.cancel(first)  # it ended already
    engine.cancel(second)
    assert [event.finish for event in engine.step()] == ["cancelled"] and not engine.has_work
    waiting = engine.add(Request([1], 9, GREEDY))
    engine.cancel(waiting)
    assert [event.finish for event in engine.step()] == ["cancelled"] and not engine.has_work


def test_a_generator_that_is_closed_leaves_no_work(tokenizer):
    engine = Engine(random_model(), tokenizer)
    rows = engine.generate([[1], [2, 3]], max_tokens=50, stop=())
    next(rows)
    rows.close()
    assert not engine.has_work and engine.stats()["running"] == 0


def test_generators_and_requests_share_an_engine_in_turns(tokenizer):
    model = random_model()
    engine = Engine(model, tokenizer)
    options = {"max_tokens": 6, "temperature": 0, "stop": ()}
    id = engine.add(Request([50], 6, GREEDY, stop=()))
    one, other = engine.generate([[5, 6]], **options), engine.generate([[7]], **options)
    got = {"one": [], "other": []}
    for a, b in zip(one, other, strict=True):
        got["one"].append(a[2])
        got["other"].append(b[2])
    events = []
    while engine.has_work:
        events += engine.step()
    naive = [list(model.generate(prompt, 6, temperature=0)) for prompt in ([5, 6], [7], [50])]
    assert [got["one"], got["other"], tokens(events)] == naive
    assert {event.id for event in events} == {id}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"prompt": []}, "has 0 tokens"),
        ({"prompt": [1] * 128}, "has 128 tokens; a context of 128"),
        ({"prompt": [320]}, "ids from 320 to 320; the model knows 0 to 319"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"stop_strings": ("a", "")}, "a stop string is empty"),
    ],
)
def test_impossible_requests_are_refused(tokenizer, wrong, message):
    engine = Engine(random_model(), tokenizer)
    with pytest.raises(ConfigError, match=message):
        engine.add(Request(**{"prompt": [1], "max_tokens": 3, **wrong}))
    assert not engine.has_work


# ---------------------------------------------------------------- events


def test_every_token_is_one_event_and_the_last_says_why(tokenizer):
    engine = Engine(saying(b"abcd"), tokenizer)
    [by_length] = run(engine, Request([ord("a")], 2, GREEDY))
    assert [(e.token, e.text, e.finish) for e in by_length] == [
        (ord("b"), "b", None), (ord("c"), "c", "length"),
    ]  # fmt: skip
    [by_token] = run(engine, Request([ord("a")], 9, GREEDY, stop=(ord("d"),)))
    assert [(e.token, e.text, e.finish) for e in by_token][1:] == [
        (ord("c"), "c", None), (None, "", "stop"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "stop_strings, texts, finish",
    [
        (("END",), ["w", "x", "", "", ""], "stop"),
        (("xEN", "END"), ["w", "", "", ""], "stop"),
        (("EX",), ["w", "x", "", "EN", "D", "y"], "length"),
        (("Dyz",), ["w", "x", "E", "N", "", "Dy"], "length"),
    ],
)
def test_stop_strings_are_caught_across_tokens(tokenizer, stop_strings, texts, finish):
    engine = Engine(saying(b"<wxENDyz"), tokenizer)
    [events] = run(engine, Request([ord("<")], 6, GREEDY, stop_strings=stop_strings))
    assert [event.text for event in events] == texts
    assert [event.finish for event in events] == [None] * (len(texts) - 1) + [finish]


def test_a_character_of_several_tokens_comes_whole(tokenizer):
    said = "<é€!"
    engine = Engine(saying(said.encode()), tokenizer)
    [events] = run(engine, Request([ord("<")], 6, GREEDY))
    assert [event.text for event in events] == ["", "é", "", "", "€", "!"]
    [events] = run(engine, Request([ord("<")], 4, GREEDY))
    assert [event.text for event in events] == ["", "é", "", "\ufffd"]
    [events] = run(engine, Request([ord("<")], 6, GREEDY, stop_strings=("€",)))
    assert [event.text for event in events] == ["", "é", "", "", ""]
    assert events[-1].finish == "stop"


def test_logprobs_are_those_of_the_models_own_distribution(tokenizer):
    model = random_model()
    params = SamplingParams(0.5, top_k=3, seed=1, repetition_penalty=1.5)
    [events] = run(Engine(model, tokenizer), Request([4, 5], 3, params, stop=(), logprobs=4))
    ids = [4, 5]
    for event in events:
        expected = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        assert event.logprob == pytest.approx(expected[event.token].item(), abs=1e-4)
        values, best = expected.topk(4)
        assert [i for i, _ in event.top_logprobs] == best.tolist()
        assert [x for _, x in event.top_logprobs] == pytest.approx(values.tolist(), abs=1e-4)
        ids.append(event.token)
    [events] = run(Engine(model, tokenizer), Request([4, 5], 2, GREEDY, stop=(), logprobs=0))
    assert events[0].logprob is not None and events[0].top_logprobs == ()


def test_the_repetition_penalty_counts_prompt_and_answer(tokenizer):
    # a -> b (10) or c (4); b -> a (10) or c (4); c -> b (10) or d (4)
    model = saying(b"ab", ba=10.0, ac=4.0, bc=4.0, cb=10.0, cd=4.0)
    engine = Engine(model, tokenizer)

    def said(penalty: float) -> str:
        params = SamplingParams(temperature=0, repetition_penalty=penalty)
        return "".join(event.text for event in run(engine, Request([ord("a")], 3, params))[0])

    assert said(1) == "bab"
    assert said(50) == "bcd"  # a is in the prompt, b in the answer when its turn comes again


# ---------------------------------------------------------------- tools


def calling(tokenizer) -> tuple[GPT, list[int]]:
    """A model that calls a tool with "6*7", then says "ok"; and the prompt for it."""
    special = tokenizer.special
    call = [ord("a"), special("<|python_start|>"), *b"6*7", special("<|python_end|>")]
    model = saying(b"")
    chain = [*zip(call, call[1:], strict=False), (special("<|output_end|>"), ord("o"))]
    chain += [(ord("o"), ord("k")), (ord("k"), special("<|assistant_end|>"))]
    with torch.no_grad():
        for token, following in chain:
            model.lm_head.weight[following, token] = 10.0
    return model, [ord("a")]


def test_texts_of_a_tool_call_come_with_their_kinds(tokenizer):
    model, prompt = calling(tokenizer)
    [events] = run(Engine(model, tokenizer), Request(prompt, 30, GREEDY))
    pieces = [(e.kind, e.text, e.forced) for e in events if e.text]
    assert pieces == [("python", c, False) for c in "6*7"] + [
        ("python_output", "4", True), ("python_output", "2", True),
        ("text", "o", False), ("text", "k", False),
    ]  # fmt: skip
    assert events[-1].finish == "stop"
    [events] = run(Engine(model, tokenizer), Request(prompt, 30, GREEDY, tools=False))
    assert not any(event.forced for event in events)


def test_a_slow_tool_stalls_nobody_else(tokenizer):
    may_answer = threading.Event()

    def slow(text: str) -> str:
        may_answer.wait(120)
        return text[::-1]

    model, prompt = calling(tokenizer)
    engine = Engine(model, tokenizer, slow)
    caller = engine.add(Request(prompt, 30, GREEDY))
    other = engine.add(Request([200], 50, GREEDY, stop=()))
    got: dict[int, list[TokenOutput]] = {caller: [], other: []}
    while len(got[other]) < 20:
        for event in engine.step():
            got[event.id].append(event)
    assert len(got[caller]) == 5, "it waits for its result"
    may_answer.set()
    while engine.has_work:
        for event in engine.step():
            got[event.id].append(event)
    assert "".join(event.text for event in got[caller]) == "6*77*6ok"
    assert len(tokens(got[other])) == 50


def test_who_waits_for_a_tool_can_be_cancelled(tokenizer):
    may_answer = threading.Event()
    model, prompt = calling(tokenizer)
    engine = Engine(model, tokenizer, lambda text: str(may_answer.wait(120)))
    id = engine.add(Request(prompt, 30, GREEDY))
    for _ in range(6):
        engine.step()
    engine.cancel(id)
    assert [event.finish for event in engine.step()] == ["cancelled"] and not engine.has_work
    may_answer.set()
    assert engine.step() == []


def test_a_tool_that_raises_says_so_in_the_answer(tokenizer):
    def broken(text: str) -> str:
        raise ValueError("no such thing")

    model, prompt = calling(tokenizer)
    [events] = run(Engine(model, tokenizer, broken), Request(prompt, 60, GREEDY))
    said = "".join(event.text for event in events if event.kind == "python_output")
    assert said == "error: no such thing"


def test_stats_count_what_was_done(tokenizer):
    engine = Engine(random_model(), tokenizer, max_batch=2)
    for _ in range(3):
        engine.add(Request([1, 2, 3], 4, GREEDY, stop=()))
    engine.step()
    stats = engine.stats()
    assert (stats["running"], stats["waiting"], stats["slots"]) == (2, 1, 2)
    while engine.has_work:
        engine.step()
    stats = engine.stats()
    assert (stats["read_tokens"] + stats["reused_tokens"], stats["answer_tokens"]) == (9, 12)
    assert stats["running"] == 0 and stats["tokens_per_second"] > 0 and stats["cache_bytes"] > 0
