"""Rewards, advantages and policy batches by hand; the gradient; a bandit; exactness of a run."""

import contextlib
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from chain_model import V, chain_model, chain_tokenizer

import bench.rl
from nanochat.common import ConfigError, rank_and_world
from nanochat.engine import Engine
from nanochat.evaluation.policy import (
    HELD_OUT,
    check_there_is_something_to_learn,
    measure,
    on_policy_error,
)
from nanochat.evaluation.rewards import Rewards
from nanochat.gpt import GPT, GPTConfig
from nanochat.loss import LossFn
from nanochat.rl import (
    Policy,
    PolicySettings,
    Rollout,
    advantages,
    policy_row,
    rollouts,
    token_logprobs,
)
from nanochat.tokenizer import Tokenizer
from nanochat.train import LoopState, train
from nanochat.training.config import StageConfig
from nanochat.training.distributed import join, read_on_rank0, shard
from nanochat.training.optimizers import build_optimizers, make_schedule
from tasks.catalog import find_named


def test_advantages_by_hand():
    found = advantages([[1, 0, 0, 1], [1, 1, 1, 1], [0.1, 0.1, 0.1, 0.1], [3, 0, 0, 0]])
    expected = [[0.5, -0.5, -0.5, 0.5], [0] * 4, [0] * 4, [2.25, -0.75, -0.75, -0.75]]
    assert found.tolist() == expected


# An answer that calls a tool: <python_start> 2+2 <python_end> are chosen, <output_start> 4
# <output_end> are forced, then 4 and the stop token are chosen.
TOOL = Rollout([1, 2], [60, 5, 61, 62, 6, 63, 6, 59], [1, 1, 1, 0, 0, 0, 1, 1], finish="stop")
CUT = Rollout([1, 2], [5, 6, 7], [1, 1, 1], finish="length")
AT_ONCE = Rollout([1, 2, 3], [59], [1], finish="stop")


@pytest.mark.parametrize(
    "rollout, targets",
    [
        (TOOL, [-1, 60, 5, 61, -1, -1, -1, 6, 59]),
        (CUT, [-1, 5, 6, 7]),
        (AT_ONCE, [-1, -1, 59]),
    ],
    ids=["a tool call", "cut by the length", "ends at once"],
)
def test_rows_by_hand(rollout, targets):
    inputs, found, weights = policy_row(rollout, 0.5)
    assert inputs.tolist() == [*rollout.prompt, *rollout.tokens][:-1]
    assert found.tolist() == targets
    assert weights.tolist() == [0.5 if t >= 0 else 0 for t in targets]


def make_batches(kept, rows=4):
    policy = make_policy()
    policy.device_batch_size = rows
    return policy.batches(kept)


def test_a_batch_that_does_not_divide_drops_no_sample():
    kept = [(Rollout([1], [2] * n, [True] * n), float(n)) for n in range(1, 12)]
    batches = make_batches(kept)
    assert [len(batch.inputs) for batch in batches] == [4, 4, 4]
    assert sum(batch.num_targets for batch in batches) == sum(range(1, 12))
    counts = sorted(int(n) for b in batches for n in (b.targets >= 0).sum(1) if n)
    assert counts == list(range(1, 12))
    total = sum(float(batch.weights.sum()) for batch in batches)
    assert total == sum(n * n for n in range(1, 12))


def test_without_a_row_there_is_a_batch_without_targets():
    (batch,) = make_batches([])
    assert batch.num_targets == 0 and batch.weights.sum() == 0


def gradients(model, batches) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss_fn = LossFn(model, compiled=False)
    count = sum(batch.num_targets for batch in batches)
    for batch in batches:
        (loss_fn(model, batch) / count).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_the_gradient_is_the_policy_gradient():
    """-sum A grad log p / tokens, by autograd of the definition."""
    model = trained_a_little(make_policy().engine.model)
    kept = [(TOOL, 0.7), (CUT, -0.3), (AT_ONCE, 0.2)]
    found = gradients(model, make_batches(kept, rows=2))
    model.zero_grad()
    total = 0.0
    for rollout, weight in kept:
        ids = rollout.prompt + rollout.tokens
        logprobs = model(torch.tensor([ids])).log_softmax(-1)[0]
        for place, (token, chosen) in enumerate(zip(rollout.tokens, rollout.chosen, strict=True)):
            if chosen:
                before = len(rollout.prompt) + place - 1
                total = total - weight * logprobs[before, token]
    (total / (5 + 3 + 1)).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-6)


def trained_a_little(model):
    """Its output projections and head are zero or near at the start, and hide most gradients."""
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    return model


def test_rejection_weighs_right_answers_alike_and_others_not_at_all():
    found = advantages([[1, 0, 0.5, -1], [1, 1, 1, 1], [0, 0, 0, 0]], "rejection")
    assert found.tolist() == [[1, 0, 1, 0], [1] * 4, [0] * 4]


def test_a_groups_gradient_is_the_sum_of_its_samples():
    model = trained_a_little(make_policy().engine.model)
    kept = [(TOOL, 0.5), (CUT, -0.5)]
    whole = gradients(model, make_batches(kept))
    parts = [gradients(model, make_batches([one])) for one in kept]
    for name, grad in whole.items():
        by_hand = (parts[0][name] * 5 + parts[1][name] * 3) / 8
        torch.testing.assert_close(grad, by_hand, rtol=1e-4, atol=1e-6)


def test_the_stop_token_is_reinforced_and_a_tools_result_is_not():
    model = trained_a_little(make_policy().engine.model)
    model.zero_grad()
    batch = make_batches([(TOOL, 1.0)], rows=1)[0]
    features = model.features(batch.inputs)
    features.retain_grad()
    logits = model.logits(features)
    logprobs = logits.log_softmax(-1).gather(-1, batch.targets.clamp(min=0)[..., None])[..., 0]
    (-(logprobs * batch.weights).sum()).backward()
    moved = features.grad[0].abs().sum(-1) > 0  # places whose next token is learned
    assert moved.tolist()[: len(TOOL.tokens) + 1] == [False, True, True, True, False, False, False,
                                                      True, True]  # fmt: skip


def test_token_logprobs_are_the_models():
    model = trained_a_little(make_policy().engine.model)
    (batch,) = make_batches([(CUT, 1.0)], rows=1)
    found = token_logprobs(model, batch)
    by_hand = model(torch.tensor([[1, 2, 5, 6, 7]])).log_softmax(-1)[0]
    expected = [by_hand[i, t].item() for i, t in ((1, 5), (2, 6), (3, 7))]
    np.testing.assert_allclose(found[0, 1:4].numpy(), expected, rtol=1e-4)
    assert found[0, 0] == 0 and not found[0, 4:].any()


def test_a_bad_reward_counts_as_zero_and_ends_nothing(capsys):
    def reward(conversation, completion):
        if completion == "raise":
            raise KeyError("answer")
        if completion == "hang":
            time.sleep(5)
        return {"nan": math.nan, "text": "1", "none": None}.get(completion, np.float32(0.5))

    rewards = Rewards(reward, seconds=0.1)
    started = time.monotonic()
    assert [rewards({}, c) for c in ("raise", "hang", "nan", "text", "none")] == [0.0] * 5
    assert time.monotonic() - started < 3
    assert rewards({}, "fine") == 0.5
    assert rewards.faults == {"raised": 1, "too slow": 1, "no number": 3}
    assert capsys.readouterr().out.count("counts as 0") == 3


@pytest.mark.parametrize("name", ["nowhere:f", "math", "math:nothing", "math:pi", ""])
def test_a_reward_that_is_not_there_is_named(name):
    with pytest.raises(ConfigError, match="--reward"):
        find_named(name, "--reward")


def test_a_reward_is_found_by_name():
    assert find_named("math:sqrt", "--reward") is math.sqrt


def test_a_reward_cannot_catch_the_time_limit_nor_leave_the_program(capsys):
    def reward(conversation, completion):
        if completion == "leave":
            raise SystemExit(3)
        for _ in range(100):
            with contextlib.suppress(Exception):
                time.sleep(0.1)

    rewards = Rewards(reward, seconds=0.1)
    assert [rewards({}, c) for c in ("leave", "hang")] == [0.0, 0.0]
    rewards.print_faults()
    assert "counted as 0: {'raised': 1, 'too slow': 1}" in capsys.readouterr().out


# ---------------------------------------------------------------- a policy that learns


class Arms:
    """One question; answers whose first id is even are the better arm."""

    kind = "generate"

    def __len__(self):
        return 16

    def __getitem__(self, index):
        turns = [("user", f"pull {index}"), ("assistant", "")]
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    def evaluate(self, conversation, completion):
        return completion == "even"


class EvenOrOdd(Tokenizer):
    """Says of an answer only what Arms asks."""

    def decode(self, ids):
        return "even" if ids and ids[0] % 2 == 0 else "odd"


def make_policy(reward=None, **settings) -> Policy:
    tokenizer = chain_tokenizer()
    tokenizer.__class__ = EvenOrOdd
    shape = {"n_embd": 32, "n_head": 2, "n_kv_head": 2, "sequence_len": 64}
    model = GPT(GPTConfig.from_depth(1, V, head_dim=16, **shape))
    settings = {"prompts_per_step": 4, "num_samples": 8, "max_tokens": 1, **settings}
    rewards = Rewards(reward or Arms().evaluate)
    return Policy(
        Engine(model, tokenizer), Arms(), rewards, PolicySettings(**settings), seed=1,
        device_batch_size=8,
    )  # fmt: skip


def learn(policy: Policy, num_steps: int, lr_scale: float = 1.0) -> dict:
    """Trains; the weights."""
    model, config = policy.engine.model, StageConfig(lr_scale=lr_scale)
    if rank_and_world()[1] > 1:
        shard(model, config, torch.device("cpu"), compiled=False)
    ranks = join(model, config)
    assert on_policy_error(policy, 1) < 1e-4  # also where a rank would have no problem
    train(
        model, list(build_optimizers(model, config, ranks.owned).values()), policy.steps(0),
        loss_fn=LossFn(model, compiled=False), schedule=make_schedule(config),
        state=LoopState(num_steps=num_steps), ranks=ranks,
    )  # fmt: skip
    return ranks.weights(model)


def test_a_bandit_finds_the_better_arm():
    policy = make_policy()
    before, _ = measure(policy, Arms(), 16, 8)
    assert 0.25 < before["pass@1"] < 0.75
    learn(policy, 40)
    after, right = measure(policy, Arms(), 16, 8)
    assert after["pass@1"] > 0.95 and after["entropy"] < before["entropy"]
    assert right.count("1") == 16 * after["greedy"]


def test_rejection_is_supervised_loss_of_the_right_answers():
    policy = make_policy(advantage="rejection")
    tokens = policy.engine.tokenizer
    right = wrong = 0
    for batch in policy.step(0):
        chosen = batch.targets[batch.targets >= 0]
        assert (batch.weights[batch.targets >= 0] == 1).all()
        right += sum(tokens.decode([id]) == "even" for id in chosen.tolist())
        wrong += sum(tokens.decode([id]) == "odd" for id in chosen.tolist())
    assert 0 < right < 32 and wrong == 0
    learn(policy, 40)
    assert measure(policy, Arms(), 16, 8)[0]["pass@1"] > 0.9


def test_entropy_and_divergence_are_those_of_the_training_model():
    policy = make_policy(max_tokens=5)
    trained_a_little(policy.engine.model)
    start = GPT(policy.engine.model.config)  # uniform but for rounding: log V nats a token
    figures, right = measure(policy, Arms(), 5, 4, start)
    assert len(right) == 5
    _, groups = policy.sample(Arms(), range(5), HELD_OUT, 4)
    flat = [rollout for group in groups for rollout in group]
    logprobs = []
    for which in (flat, flat[::4]):
        batches = policy.batches([(r, 1.0) for r in which])
        chosen = [token_logprobs(policy.engine.model, b)[b.targets >= 0] for b in batches]
        logprobs.append(torch.cat(chosen))
    assert figures["entropy"] == pytest.approx(-float(logprobs[0].mean()), rel=1e-3)
    by_start = [token_logprobs(start, b)[b.targets >= 0] for b in batches]
    expected = float(logprobs[1].mean() - torch.cat(by_start).mean())
    assert figures["kl_to_start"] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_sampling_is_on_policy():
    policy = make_policy(max_tokens=20)
    trained_a_little(policy.engine.model)
    assert on_policy_error(policy) < 1e-4


def test_the_gate_stops_where_all_answers_are_alike(capsys):
    policy = make_policy()
    policy.task = Arms()
    policy.task.evaluate = lambda conversation, completion: True
    with pytest.raises(ConfigError, match="only 0.0% of the problems.*--no-gate"):
        check_there_is_something_to_learn(policy, stop=True)
    check_there_is_something_to_learn(policy, stop=False)
    assert "pass@1 100.0%, pass@8 100.0%, greedy 100.0%" in capsys.readouterr().out


def test_a_tools_result_is_not_chosen_and_the_stop_token_is():
    tokenizer = chain_tokenizer()
    said = "<|assistant_start|><|python_start|>6*7<|python_end|>"
    model = chain_model(tokenizer, said, "<|output_end|>!<|assistant_end|>")
    prompt = tokenizer.encode("<|assistant_start|>")
    ((rollout,),) = rollouts(Engine(model, tokenizer), [prompt], 1, seeds=[1], max_tokens=20,
                             temperature=0.0)  # fmt: skip
    text = "<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>!<|assistant_end|>"
    assert tokenizer.decode(rollout.tokens) == text and rollout.finish == "stop"
    forced = [id for id, own in zip(rollout.tokens, rollout.chosen, strict=True) if not own]
    assert tokenizer.decode(forced) == "<|output_start|>42<|output_end|>"


@pytest.mark.parametrize("reward", [lambda c, t: 1.0, lambda c, t: 1 / 0], ids=["equal", "raises"])
def test_without_a_mixed_group_no_tensor_moves(reward, capsys):
    policy = make_policy(reward)
    before = {name: p.clone() for name, p in policy.engine.model.named_parameters()}
    learn(policy, 3)
    for name, p in policy.engine.model.named_parameters():
        assert torch.equal(p, before[name]), name


def test_a_step_depends_on_its_number_and_the_weights_alone():
    first, again = make_policy(max_tokens=6), make_policy(max_tokens=6)
    first.step(0), first.step(1)
    for a, b in zip(first.step(2), again.step(2), strict=True):
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.weights, b.weights)


def test_answers_that_were_cut_can_be_left_out():
    kept = [
        sum(b.num_targets for b in make_policy(mask_truncated=m).step(0)) for m in (False, True)
    ]
    assert kept[0] > 0 and kept[1] == 0  # one token each: all are cut


def test_the_pull_to_the_reference_is_the_gradient_of_the_divergence():
    policy = make_policy(kl_coef=0.5, max_tokens=3)
    model = policy.engine.model
    policy.reference = GPT(model.config)
    trained_a_little(policy.reference)
    plain = replace(policy.settings, kl_coef=0.0)
    pulled = policy.step(0)
    policy.settings = plain
    for a, b in zip(pulled, policy.step(0), strict=True):
        now, then = token_logprobs(model, b), token_logprobs(policy.reference, b)
        torch.testing.assert_close(a.weights, b.weights - 0.5 * (now - then))
        assert (now != then).any()


def test_all_prompts_at_once_answer_as_one_at_a_time():
    policy = make_policy()
    trained_a_little(policy.engine.model)
    config = bench.rl.Config(samples=5, max_tokens=9)
    prompts = [[1, 2, 3], [4, 5], [6]]
    together = bench.rl.count_tokens(policy.engine, prompts, config, seed=3)
    alone = [
        bench.rl.count_tokens(policy.engine, [prompt], config, seed=3 + i)
        for i, prompt in enumerate(prompts)
    ]
    assert together == sum(alone) > 0


# ---------------------------------------------------------------- ranks


def step_on_rank() -> tuple[list, dict]:
    policy = make_policy(prompts_per_step=3, max_tokens=4, kl_coef=0.1)
    parents = [] if rank_and_world()[0] else [trained_a_little(make_policy().engine.model)]
    policy.reference = read_on_rank0(parents.pop, like=policy.engine.model)
    held_out, right = measure(policy, Arms(), 1, 2)  # the second rank has no problem
    figures = [[right, *held_out.values()]]
    policy.note = lambda step, f: figures.append(
        [f["reward"], f["mixed_groups"], f["answer_tokens"]]
    )
    return figures, learn(policy, 1)


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path, base_dir, rank_processes):
    """Three problems on two ranks: their shares are not equal."""
    (tmp_path / "core.cpp").symlink_to(base_dir / "core.cpp")
    jobs = {"one": (step_on_rank, 1, 1, {}), "two": (step_on_rank, 2, 2, {})}
    results = rank_processes.run(jobs, tmp_path)
    (one, weights), (two, others) = results["one"][0], results["two"][0]
    assert one[0][0] == two[0][0]  # which answers were right
    np.testing.assert_allclose(one[0][1:], two[0][1:], rtol=1e-4)
    np.testing.assert_allclose(one[1:], two[1:])
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=1e-3, atol=1e-4)
