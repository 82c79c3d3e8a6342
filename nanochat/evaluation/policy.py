"""How a policy does on held-out problems, and whether its sampling is on-policy."""

import numpy as np

from nanochat.common import ConfigError, gather, print0
from nanochat.evaluation.rewards import Rewards
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
        (batch,) = policy.batches([(rollout, [1.0] * len(rollout.tokens))])
        found = token_logprobs(policy.engine.model, batch)[batch.targets >= 0].tolist()
        sampled = [x for x in rollout.logprobs if x is not None]
        worst = max(worst, *(abs(a - b) for a, b in zip(found, sampled, strict=True)))
    return worst


def measure(policy: Policy, task, num_problems: int, num_samples: int, start=None) -> dict:
    """How the task's first `num_problems` problems go now, over all ranks.

    Shares that are right, with standard errors: "greedy", "pass@1" and "pass@k" of k samples at
    temperature 1; "mixed_groups", answered both right and wrong; the answers' length, entropy in
    nats a token and KL divergence to `start`, the model that the run began with. "samples": three
    questions, answers, and whether these are right.
    """
    engine = policy.engine
    engine.refresh()
    problems, right = range(min(num_problems, len(task))), Rewards(task.evaluate)
    conversations, likeliest = policy.sample(task, problems, HELD_OUT, 1, temperature=0.0)
    greedy = policy.judge(conversations, likeliest, right)  # (prompts, 1)
    _, groups = policy.sample(task, problems, HELD_OUT, num_samples)
    sampled = policy.judge(conversations, groups, right)  # (prompts, k)
    flat = [rollout for group in groups for rollout in group]
    cut = np.array([rollout.finish == "length" for rollout in flat])
    sums = np.zeros(3)  # of -log p, of log p - log p at the start, of tokens
    for batch in policy.batches([(rollout, [1.0] * len(rollout.tokens)) for rollout in flat]):
        now = token_logprobs(engine.model, batch)
        then = now if start is None else token_logprobs(start, batch)
        sums += [-float(now.sum()), float((now - then).sum()), batch.num_targets]
    every = gather([(greedy, sampled, cut, sums)])
    greedy, sampled, cut = (np.concatenate([part[i] for part in every]) for i in range(3))
    nats, divergence, tokens = sum(part[3] for part in every)
    solved = sampled.any(axis=1)
    shares = {"greedy": greedy[:, 0], "pass@1": sampled.mean(axis=1)}
    shares |= {f"pass@{num_samples}": solved, "mixed_groups": solved & ~sampled.all(axis=1)}
    figures = {}
    for name, share in shares.items():
        figures |= {name: share.mean(), f"{name}_stderr": share.std() / len(share) ** 0.5}
    figures |= {"cut_share": cut.mean(), "answer_tokens": tokens / sampled.size}
    figures |= {"entropy": nats / tokens}
    figures |= {} if start is None else {"kl_to_start": divergence / tokens}
    questions = [conversation["messages"][-2]["content"] for conversation in conversations[:3]]
    answers = [engine.tokenizer.decode(group[0].tokens) for group in groups[:3]]
    samples = list(zip(questions, answers, sampled[:3, 0] > 0, strict=True))
    return {name: float(value) for name, value in figures.items()} | {"samples": samples}


def check_there_is_something_to_learn(policy: Policy, stop: bool) -> None:
    """ConfigError, if `stop`, where hardly any of 64 problems is answered both right and wrong."""
    figures = measure(policy, policy.task, 64, 8)
    names = {"pass@1": "pass@1", "pass@8": "pass@8", "greedy": "greedy", "mixed_groups": "mixed"}
    shown = ", ".join(f"{shown} {figures[name]:.1%}" for name, shown in names.items())
    print0(f"before training, 64 problems x 8 answers: {shown} (problems answered right and wrong)")
    if figures["mixed_groups"] < LEAST_MIXED and stop:
        raise ConfigError(
            f"only {figures['mixed_groups']:.1%} of the problems were answered both right and "
            f"wrong, expected {LEAST_MIXED:.0%}: where all answers are alike there is nothing to "
            f"learn. Take an easier or a harder task, fine-tune longer, or go on with --no-gate"
        )
