"""Reinforcement learning on a task that judges itself, or by a reward of your own.

    python -m scripts.chat_rl --task=gsm8k
    python -m scripts.chat_rl --task=my_task:Reverse --reward=my_task:letters_in_place

A reward is a function (conversation, completion) -> float; see docs/training.md.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from nanochat.checkpoint_manager import load_folder
from nanochat.common import ConfigError, on_rank0, print0
from nanochat.configurator import cli
from nanochat.engine import Engine
from nanochat.evaluation.policy import check_there_is_something_to_learn, measure, on_policy_error
from nanochat.evaluation.rewards import Rewards
from nanochat.gpt import GPT
from nanochat.publishing.beginning import find_parent
from nanochat.publishing.train_and_report import train_and_report
from nanochat.rl import Policy, PolicySettings
from nanochat.train import LoopState, Periodic
from nanochat.training.config import StageConfig
from nanochat.training.distributed import read_on_rank0
from nanochat.training.stage import Stage, StageData
from tasks.catalog import as_bytes, find_named, fingerprint, make_task, split_name


@dataclass(frozen=True)
class Config(StageConfig):
    parent: str = "sft"
    """Stage to begin with: sft, mid or base."""
    parent_tag: str | None = None
    """Its model; default: the newest."""
    task: str = "gsm8k"
    """Problems with answers to generate: name[@source], or package.module:Class of your own."""
    reward: str | None = None
    """package.module:function; default: the task's own, 1 for a right answer and 0 for another."""
    policy: Annotated[PolicySettings, tyro.conf.OmitArgPrefixes] = PolicySettings()
    """How a step samples and what it learns from."""
    eval_every: int = 60
    """Steps between measurements on held-out problems; 0: at the end alone, -1: never."""
    eval_problems: int = 400
    """Held-out problems of a measurement."""
    eval_samples: int = 8
    """Answers to each of them, beside the likeliest one."""
    gate: bool = True
    """Stop before the first step where hardly any problem has right and wrong answers."""
    lr_scale: float = 0.05
    warmdown: float = 1.0


def main(config: Config) -> None:
    stage = Stage("rl", config, parent=find_parent(config, config.parent, config.parent_tag))
    name, source = split_name(config.task)
    task, held_out = (
        make_task(name, split, source, max_malformed=config.max_malformed)
        for split in ("train", "test")
    )
    if task.kind != "generate":
        raise ConfigError(f"--task {config.task!r} is multiple choice; take one with free answers")
    rewards = Rewards(find_named(config.reward, "--reward") if config.reward else task.reward)
    settings, device = config.policy, stage.model.device
    if settings.temperature != 1:
        print0(f"temperature {settings.temperature}: the answers are not quite the policy's own")
    rows = settings.prompts_per_step * settings.num_samples
    plan = replace(stage.plan_batch(rows, stage.model.config.sequence_len), rows_per_step=rows)

    def first_model() -> GPT:
        return read_on_rank0(lambda: load_folder(stage.parent, device, "eval")[0], stage.model)

    def note(step: int, figures: dict) -> None:
        stage.log.write({"step": step + 1, **{f"rl/{name}": x for name, x in figures.items()}})
        stage.log.extra = (
            " | reward {reward:.3f}, mixed {mixed_groups:.0%}, {answer_tokens:.1f} tokens, cut "
            "{cut_share:.0%}, sampled in {rollout_seconds:.1f} s"
        ).format(**figures)

    policy = Policy(
        Engine(stage.model, stage.tokenizer),
        task,
        rewards,
        settings,
        seed=config.seed,
        device_batch_size=plan.device_batch,
        reference=first_model() if settings.kl_coef else None,
        note=note,
    )
    print0(f"log p of a token, sampled and trained, differs by up to {on_policy_error(policy):.1e}")
    if not stage.resume_from:
        check_there_is_something_to_learn(policy, stop=config.gate)

    def evaluate(state: LoopState) -> None:
        number, k = config.eval_problems, config.eval_samples
        figures, right = measure(policy, held_out, number, k, first_model())
        stage.log.write({"step": state.step, "held_out/right": right})
        stage.log.note(state, **{f"held_out/{name}": value for name, value in figures.items()})

    epoch = max(1, len(task) // settings.prompts_per_step)
    report = {"task": config.task, "problems": len(task), "reward": config.reward or "the task's"}
    identity = on_rank0(lambda: fingerprint(as_bytes(task), as_bytes(held_out)))
    data = StageData(None, None, identity, report, epoch)
    measuring = Periodic(evaluate, config.eval_every, at_start=config.eval_every >= 0)
    events = measuring, Periodic(lambda state: rewards.print_faults(), every=0)
    train_and_report(stage, data, plan, events, policy.steps)


if __name__ == "__main__":
    cli(main, Config)
