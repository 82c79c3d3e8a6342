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
    # subtle: one for each rank at least, because all put the model's weights together
    number = max(num_problems, rank_and_world()[1])
    problems = [i % len(policy.task) for i in range(number)]
    _, groups = policy.sample(policy.task, problems, HELD_OUT, 2, logprobs=True)
    worst = 0.0
    for rollout in (rollout for group in groups for rollout in group):
        (batch,) = policy.batches([(rollout, 1.0)])
        found = token_logprobs(policy.engine.model, batch)[batch.targets >= 0].tolist()
        sampled = [x for x in rollout.logprobs if x is not None]
        worst = max(worst, *(abs(a - b) for a, b in zip(found, sampled, strict=True)))
    return max(gather([worst]))


def measure(
    policy: Policy, task, num_problems: int, num_samples: int, start=None
) -> tuple[dict[str, float], str]:
    """How the task's first `num_problems` problems go now, over all ranks: figures, and "1" or "0"
    for each problem whose likeliest answer is right or wrong. Prints three answers.

    Shares that are right, with standard errors: "greedy", and "pass@k" of k samples at temperature
    1; "mixed_groups", answered both right and wrong; the answers' length, entropy in nats a token
    and KL divergence to `start`, the model that the run began with, by one answer to each problem.
    """
    policy.engine.refresh()
    problems, right = range(min(num_problems, len(task))), Rewards(task.evaluate)
    conversations, likeliest = policy.sample(task, problems, HELD_OUT, 1, temperature=0.0)
    greedy = policy.judge(conversations, likeliest, 1, right)[:, 0]
    _, groups = policy.sample(task, problems, HELD_OUT, num_samples, logprobs=True)
    sampled = policy.judge(conversations, groups, num_samples, right)
    for conversation, group, rewards in list(zip(conversations, groups, sampled, strict=True))[:3]:
        question = conversation["messages"][-2]["content"]
        text = policy.engine.tokenizer.decode(group[0].tokens)
        print0(f"  {'right' if rewards[0] else 'wrong'}: {question} -> {text}".replace("\n", " "))
    rows = []  # of each problem; log p and number of tokens of all its answers, and of the first
    for answer, rewards, group in zip(greedy, sampled, groups, strict=True):
        logprobs = [[x for x in rollout.logprobs if x is not None] for rollout in group]
        cut = sum(rollout.finish == "length" for rollout in group)
        chosen, first = sum(logprobs, []), logprobs[0]
        likelihoods = sum(chosen), len(chosen), sum(first), len(first)
        rows.append((answer, rewards.sum(), cut, *likelihoods))
    greedy, right_answers, *columns = np.array(gather(rows)).T
    cut, logprob, tokens, first_logprob, first_tokens = (column.sum() for column in columns)
    shares = {"greedy": greedy}
    for k in sorted({k for k in (1, 2, 4, 8, num_samples) if k <= num_samples}):
        shares[f"pass@{k}"] = np.array([pass_at_k(num_samples, int(n), k) for n in right_answers])
    shares["mixed_groups"] = (right_answers > 0) & (right_answers < num_samples)
    figures = {}
    for name, share in shares.items():
        figures |= {name: share.mean(), f"{name}_stderr": share.std() / len(share) ** 0.5}
    answers = len(greedy) * num_samples
    figures |= {"cut_share": cut / answers, "answer_tokens": tokens / answers}
    figures["entropy"] = -logprob / tokens
    if start is not None:
        ones = [(group[0], 1.0) for group in groups]
        by_start = sum(float(token_logprobs(start, b).sum()) for b in policy.batches(ones))
        figures["kl_to_start"] = (first_logprob - sum(gather([by_start]))) / first_tokens
    right_or_wrong = "".join("1" if x else "0" for x in greedy)
    return {name: float(value) for name, value in figures.items()}, right_or_wrong


def check_there_is_something_to_learn(policy: Policy, stop: bool) -> None:
    """ConfigError, if `stop`, where hardly any of 64 problems is answered both right and wrong."""
    figures, _ = measure(policy, policy.task, 64, 8)
    shown = "pass@1 {pass@1:.1%}, pass@8 {pass@8:.1%}, greedy {greedy:.1%}, right and wrong "
    shown += "{mixed_groups:.1%}"
    print0("before training, 64 problems x 8 answers: " + shown.format(**figures))
    if figures["mixed_groups"] < LEAST_MIXED and stop:
        raise ConfigError(
            f"only {figures['mixed_groups']:.1%} of the problems were answered both right and "
            f"wrong, expected {LEAST_MIXED:.0%}: where all answers are alike there is nothing to "
            f"learn. Take an easier or a harder task, fine-tune longer, or go on with --no-gate"
        )
