"""Reinforcement learning on a task that judges itself, or by a reward of your own.

    python -m scripts.chat_rl --task=gsm8k
    python -m scripts.chat_rl --task=spell --reward=my_rewards:short_and_right

A reward is a function (conversation, completion) -> float; see docs/training.md.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from nanochat.checkpoint_manager import load_folder
from nanochat.common import ConfigError, compute_cleanup, print0
from nanochat.configurator import cli
from nanochat.engine import Engine
from nanochat.report.report import remake
from nanochat.train import Periodic
from nanochat.training.config import StageConfig
from nanochat.training.rewards import Rewards, find_reward
from nanochat.training.stage import StageData, start_stage
from tasks.catalog import make_task

LEAST_MIXED = 0.1  # below it, few groups have an answer that is better than another


@dataclass(frozen=True)
class Config(StageConfig):
    parent: str = "sft"
    """Stage to begin with: sft, mid or base."""
    parent_tag: str | None = None
    """Its model; default: the newest."""
    parent_step: int | None = None
    """Its step; default: the newest."""
    task: str = "gsm8k"
    """Problems to train on: name[@source] of a task with an answer to generate."""
    reward: str | None = None
    """package.module:function; default: the task's own, 1 for a right answer and 0 for another."""
    policy: Annotated[PolicySettings, tyro.conf.OmitArgPrefixes] = field(
        default_factory=PolicySettings
    )
    """How a step samples and what it learns from."""
    num_problems: int | None = None
    """Problems of a task that is made by rule; default: its own number."""
    eval_every: int = 60
    """Steps between measurements on held-out problems; 0: at the end alone, -1: never."""
    eval_problems: int = 400
    """Held-out problems of a measurement."""
    eval_samples: int = 8
    """Answers to each of them, beside the likeliest one."""
    gate: bool = True
    """Stop before the first step where hardly any problem has right and wrong answers."""
    lr_scale: float = 0.05
    """Factor on all three learning rates."""
    warmdown: float = 1.0
    """Fraction of the steps over which the learning rate falls to final_lr."""


def pass_gate(policy: Policy, config: Config) -> None:
    """Raises ConfigError where there is too little to learn from."""
    figures = policy.measure(policy.task, 64, 8)
    print0(
        f"before training, 64 problems x 8 answers: pass@1 {figures['pass@1']:.1%}, pass@8 "
        f"{figures['pass@8']:.1%}, greedy {figures['greedy']:.1%}, mixed groups "
        f"{figures['mixed_groups']:.1%}"
    )
    if figures["mixed_groups"] < LEAST_MIXED and config.gate:
        raise ConfigError(
            f"only {figures['mixed_groups']:.1%} of the problems have answers of different reward, "
            f"so there is hardly anything to learn from. Take an easier or a harder task, fine-tune "
            f"longer first, or go on all the same with --no-gate"
        )


def main(config: Config) -> None:
    parent = config.parent, config.parent_tag, config.parent_step
    stage = start_stage("rl", config, parent=parent)
    name, _, source = config.task.partition("@")
    task, held_out = (
        make_task(name, split, source or None, size=size)
        for split, size in (("train", config.num_problems), ("test", None))
    )
    if task.kind != "generate":
        raise ConfigError(f"--task {config.task!r} is multiple choice; take one with an answer")
    rewards = Rewards(find_reward(config.reward) if config.reward else task.reward)
    settings, tokenizer = config.policy, stage.tokenizer
    if settings.temperature != 1:
        print0(f"temperature {settings.temperature}: what is learned from is not on-policy")
    rows = settings.prompts_per_step * settings.num_samples
    plan = replace(stage.plan_batch(rows, stage.model.config.sequence_len), rows_per_step=rows)
    start, _, _ = load_folder(stage.parent, stage.model.device, "eval")
    policy = Policy(
        Engine(stage.model, tokenizer),
        task,
        rewards,
        settings,
        seed=config.seed,
        device_batch_size=plan.device_batch,
        reference=start if settings.kl_coef else None,
        note=lambda **figures: stage.log.note(**figures),
    )
    if not stage.resume_from:
        pass_gate(policy, config)

    def measure(state) -> None:
        figures = policy.measure(held_out, config.eval_problems, config.eval_samples, start)
        for question, answer, right in figures.pop("samples"):
            print0(f"  {'right' if right else 'wrong'}: {question} -> {answer}".replace("\n", " "))
        stage.log.note(state, **{f"rl/{name}": value for name, value in figures.items()})

    epoch = max(1, len(task) // settings.prompts_per_step)
    report = {"task": config.task, "problems": len(task), "reward": config.reward or "the task's"}
    data = StageData(None, None, task_fingerprint(task), report, config.num_steps or epoch, epoch)
    stage.train(data, plan, (Periodic(measure, config.eval_every),), policy.steps)
    remake(stage.tag)
    compute_cleanup()


if __name__ == "__main__":
    cli(main, Config)
