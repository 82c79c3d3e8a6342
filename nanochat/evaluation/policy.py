"""How a policy does on held-out problems, and whether its sampling is on-policy."""

import numpy as np

from nanochat.common import ConfigError, gather, print0, rank_and_world
from nanochat.evaluation.rewards import Rewards
from nanochat.evaluation.tasks import pass_at_k
from nanochat.rl import Policy, token_logprobs

LEAST_MIXED = 0.1  # below it, few groups have an answer that is better than another
HELD_OUT = 2**32 - 1  # the step that answers which are not trained on are sampled as


def on_policy_error(policy: Policy, num_problems: int = 4) -> float:
    """The largest difference between log p of a token as it was sampled and as the training model
    has it, over a few answers: 0 but for rounding."""
    policy.engine.refresh()
    problems = range(min(num_problems, len(policy.task)))
    _, groups = policy.sample(policy.task, problems, HELD_OUT, 2, logprobs=True)
    worst = 0.0
    for rollout in (rollout for group in groups for rollout in group):
        (batch,) = policy.batches([(rollout, 1.0)])
        found = token_logprobs(policy.engine.model, batch)[batch.targets >= 0].tolist()
        sampled = [x for x in rollout.logprobs if x is not None]
        worst = max(worst, *(abs(a - b) for a, b in zip(found, sampled, strict=True)))
    return worst


def measure(
    policy: Policy, task, num_problems: int, num_samples: int, start=None
) -> tuple[dict[str, float], str]:
    """How the task's first `num_problems` problems go now, over all ranks: figures, and "1" or "0"
    for each problem whose likeliest answer is right or wrong. Prints three answers.

    Shares that are right, with standard errors: "greedy", and "pass@k" of k samples at temperature
    1; "mixed_groups", answered both right and wrong; the answers' length, entropy in nats a token
    and KL divergence to `start`, the model that the run began with, by one answer to each problem.
    """
    engine = policy.engine
    engine.refresh()
    rank, world = rank_and_world()
    problems, right = np.arange(min(num_problems, len(task))), Rewards(task.evaluate)
    conversations, likeliest = policy.sample(task, problems, HELD_OUT, 1, temperature=0.0)
    greedy = policy.judge(conversations, likeliest, 1, right)
    _, groups = policy.sample(task, problems, HELD_OUT, num_samples, logprobs=True)
    sampled = policy.judge(conversations, groups, num_samples, right)
    texts = [engine.tokenizer.decode(group[0].tokens) for group in groups[:3]]
    for conversation, text, (first, *_) in zip(conversations, texts, sampled, strict=False):
        question = conversation["messages"][-2]["content"]
        print0(f"  {'right' if first else 'wrong'}: {question} -> {text}".replace("\n", " "))
    flat = [rollout for group in groups for rollout in group]
    cut = np.array([rollout.finish == "length" for rollout in flat])
    logprobs = [[x for x in rollout.logprobs if x is not None] for rollout in flat]
    firsts = logprobs[::num_samples]
    nats, tokens = -sum(map(sum, logprobs)), sum(map(len, logprobs))
    divergence, compared = sum(map(sum, firsts)), sum(map(len, firsts))
    if start is not None:
        ones = [(group[0], 1.0) for group in groups]
        divergence -= sum(float(token_logprobs(start, b).sum()) for b in policy.batches(ones))
    sums = np.array([nats, tokens, divergence, compared])
    every = gather([(problems[rank::world], greedy, sampled, cut, sums)])
    order, greedy, sampled, cut = (np.concatenate([part[i] for part in every]) for i in range(4))
    greedy = greedy[np.argsort(order), 0]
    nats, tokens, divergence, compared = sum(part[4] for part in every)
    right_answers, shares = sampled.sum(axis=1), {"greedy": greedy}
    for k in sorted({k for k in (1, 2, 4, 8, num_samples) if k <= num_samples}):
        shares[f"pass@{k}"] = np.array([pass_at_k(num_samples, int(n), k) for n in right_answers])
    shares["mixed_groups"] = (right_answers > 0) & (right_answers < num_samples)
    figures = {}
    for name, share in shares.items():
        figures |= {name: share.mean(), f"{name}_stderr": share.std() / len(share) ** 0.5}
    figures |= {"cut_share": cut.mean(), "answer_tokens": tokens / sampled.size}
    figures |= {"entropy": nats / tokens}
    figures |= {} if start is None else {"kl_to_start": divergence / compared}
    right_or_wrong = "".join("1" if x else "0" for x in greedy)
    return {name: float(value) for name, value in figures.items()}, right_or_wrong


def check_there_is_something_to_learn(policy: Policy, stop: bool) -> None:
    """ConfigError, if `stop`, where hardly any of 64 problems is answered both right and wrong."""
    figures, _ = measure(policy, policy.task, 64, 8)
    names = {"pass@1": "pass@1", "pass@8": "pass@8", "greedy": "greedy", "mixed_groups": "mixed"}
    shown = ", ".join(f"{shown} {figures[name]:.1%}" for name, shown in names.items())
    print0(f"before training, 64 problems x 8 answers: {shown} (problems answered right and wrong)")
    if figures["mixed_groups"] < LEAST_MIXED and stop:
        raise ConfigError(
            f"only {figures['mixed_groups']:.1%} of the problems were answered both right and "
            f"wrong, expected {LEAST_MIXED:.0%}: where all answers are alike there is nothing to "
            f"learn. Take an easier or a harder task, fine-tune longer, or go on with --no-gate"
        )
