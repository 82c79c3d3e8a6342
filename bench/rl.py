"""Sampling of one step of reinforcement learning: all prompts at once, one at a time, and by
Hugging Face's generate.

    python -m bench.rl --source=sft --task=facts

16 answers of a trained model to each of 16 problems at temperature 1, of a task that calls no tool,
so that all three do the same work. Hugging Face loads the same checkpoint in the same dtype, and a
prompt is given to it 16 times at once (needs the export extra). The three take turns; prints
tokens/s, stop tokens counted, and writes bench/results/rl-<machine>.json.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench.record import write_record
from nanochat.checkpoint.index import find_checkpoint
from nanochat.checkpoint_manager import load_folder
from nanochat.common import choose_dtype, compute_init
from nanochat.configurator import cli
from nanochat.conversation import render_for_completion, stop_ids
from nanochat.engine import Engine
from nanochat.hardware import device_name, synchronize
from nanochat.rl import rollouts
from tasks.catalog import make_task


@dataclass(frozen=True)
class Config:
    source: str = "sft"
    """Stage of the model."""
    model_tag: str | None = None
    """Its run; default: the newest."""
    task: str = "facts"
    """Whose problems are answered."""
    prompts: int = 16
    """Problems of a step."""
    samples: int = 16
    """Answers to each."""
    max_tokens: int = 64
    """Longest answer."""
    repeats: int = 3
    """Turns; the table shows medians."""
    device_type: str = "auto"
    """auto, cuda, mps or cpu."""


def count_tokens(engine: Engine, prompts: Sequence[list[int]], config: Config, seed: int) -> int:
    """Samples as a step of training does, the engine's cache emptied; how many tokens came.
    seed: of the first prompt; the next has the next."""
    engine.scheduler.forget()
    seeds = range(seed, seed + len(prompts))
    options = {"seeds": seeds, "max_tokens": config.max_tokens}
    groups = rollouts(engine, prompts, config.samples, **options)
    return sum(len(rollout.tokens) for group in groups for rollout in group)


def hugging_face(folder: Path, engine: Engine, config: Config):
    """A function that answers the prompts by transformers, and counts the tokens."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=engine.model.compute_dtype)
    model = model.to(engine.model.device)
    stop = torch.tensor(stop_ids(engine.tokenizer))

    def run(prompts: Sequence[list[int]]) -> int:
        tokens = 0
        for prompt in prompts:
            inputs = torch.tensor([prompt], device=model.device)
            with torch.inference_mode():
                out = model.generate(
                    inputs, attention_mask=torch.ones_like(inputs), do_sample=True, top_k=0,
                    num_return_sequences=config.samples, max_new_tokens=config.max_tokens,
                    eos_token_id=stop.tolist(), pad_token_id=int(stop[0]),
                )  # fmt: skip
            answers = out[:, len(prompt) :].cpu()
            ended = torch.isin(answers, stop).int().cumsum(1)
            tokens += int(((ended == 0).sum(1) + (ended[:, -1] > 0)).sum())
        return tokens

    return run


def main(config: Config) -> None:
    device = compute_init(config.device_type)[-1]
    folder = find_checkpoint(config.source, config.model_tag)
    model, tokenizer, _ = load_folder(folder, device, "eval")
    engine, task = Engine(model, tokenizer), make_task(config.task, "train")
    prompts = [render_for_completion(task[i], tokenizer) for i in range(config.prompts)]
    other = hugging_face(folder, engine, config)
    programs = {
        "all prompts at once": lambda: count_tokens(engine, prompts, config, 0),
        "one prompt at a time": lambda: sum(
            count_tokens(engine, [prompt], config, i) for i, prompt in enumerate(prompts)
        ),
        "Hugging Face generate": lambda: other(prompts),
    }
    speeds = {name: [] for name in programs}
    for turn in range(config.repeats + 1):  # the first warms up, and is not counted
        for name, run in programs.items():
            synchronize(device)
            started = time.perf_counter()
            tokens = run()
            synchronize(device)
            if turn:
                speeds[name].append(tokens / (time.perf_counter() - started))
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    title = f"{config.prompts} x {config.samples} answers, {device_name(device)}"
    table = Table("sampling", "tokens/s", "at once is", title=title)
    for name, speed in medians.items():
        table.add_row(name, f"{speed:,.0f}", f"{medians['all prompts at once'] / speed:.1f}x")
    Console().print(table)
    dtype = str(choose_dtype(device)[0]).removeprefix("torch.")
    write_record("rl", config, device, {"compute_dtype": dtype, "tokens_per_second": speeds})


if __name__ == "__main__":
    cli(main, Config)
