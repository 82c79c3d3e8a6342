"""Measures a chat model on tasks: accuracy with its standard error.

    python -m scripts.chat_eval --source=sft
    python -m scripts.chat_eval -i mid -a "arithmetic|gsm8k@./gsm8k-test.parquet" --limit=200

Multiple choice is decided by the logits of the letters, the rest by the likeliest answer. Figures
go to the run's metrics.jsonl, every answer to answers/<task>-step<n>.jsonl beside it.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from nanochat.checkpoint_manager import load_model
from nanochat.common import DataError, all_reduce_sum, compute_cleanup, compute_init, print0
from nanochat.configurator import cli
from nanochat.engine import Engine
from nanochat.evals import evaluate_task
from nanochat.metrics import append_metrics
from nanochat.report import remake
from tasks.catalog import make_task
from tasks.task import GeneratedTask, Task

OF_A_GENERATED_TASK = 500  # examples, unless --limit says otherwise: there is no end of them


@dataclass(frozen=True)
class Config:
    source: Annotated[str, tyro.conf.arg(aliases=["-i"])] = "sft"
    """Stage of the model (base, mid, sft, rl), or a checkpoint's folder."""
    tasks: Annotated[str, tyro.conf.arg(aliases=["-a"])] = (
        "arithmetic|spelling|facts|identity|gsm8k|mmlu|arc-easy|arc-challenge"
    )
    """name[@source]|...; source is a local file or folder instead of the hub's."""
    model_tag: str | None = None
    """Run to take; default: the newest."""
    step: int | None = None
    """Its step; default: the newest."""
    limit: int | None = None
    """Examples of each task; default: all of a data set, 500 of a task that is made by rule."""
    batch_size: int = 32
    """Rows that one device computes at a time."""
    max_tokens: int = 512
    """Longest answer."""
    seed: int = 42
    """Of the choice of examples under a limit."""
    device_type: str = "auto"
    """auto, cuda, mps or cpu."""


def load_task(text: str, device: torch.device) -> Task | None:
    """The task called name[@source], or None, with a printed line, where a rank has no data."""
    name, _, source = text.partition("@")
    task, why = None, "another rank could not read its data"
    try:
        task = make_task(name, "test", source or None)
    except DataError as error:
        why = str(error)
    failed = all_reduce_sum(torch.tensor(float(task is None), device=device))
    if failed:
        print0(f"{name}: not run: {why}")
        return None
    return task


def main(config: Config) -> None:
    *_, device = compute_init(config.device_type)
    model, tokenizer, meta = load_model(
        config.source, device, "eval", config.model_tag, config.step
    )
    engine = Engine(model, tokenizer)
    run_folder = Path(meta["path"]).parent
    results = []
    for text in filter(None, (part.strip() for part in config.tasks.split("|"))):
        task = load_task(text, device)
        if task is None:
            continue
        limit = config.limit
        if limit is None and isinstance(task, GeneratedTask):
            limit = OF_A_GENERATED_TASK
        started = time.perf_counter()
        result = evaluate_task(
            task.name,
            task,
            engine,
            limit=limit,
            batch_size=config.batch_size,
            max_tokens=config.max_tokens,
            seed=config.seed,
            answers_path=run_folder / "answers" / f"{task.name}-step{meta['step']}.jsonl",
        )
        print0(f"{result} in {time.perf_counter() - started:.0f} s")
        results.append(result)
    if not results:
        raise DataError(f"none of {config.tasks} could be run; the lines above say why")
    print0(f"\n{meta['stage']} {meta['tag']}, step {meta['step']:,}")
    print0(f"{'task':<16}{'kind':<10}{'accuracy':>9}  ± stderr{'n':>8}")
    record = {"stage": meta["stage"], "step": meta["step"]}
    for r in results:
        print0(f"{r.name:<16}{r.kind:<10}{r.accuracy:>9.1%}  ± {r.stderr:<6.1%}{r.total:>8,}")
        record[f"accuracy/{r.name}"] = r.accuracy
        record[f"stderr/{r.name}"] = r.stderr
        record[f"examples/{r.name}"] = r.total
    append_metrics(run_folder, record)
    remake(meta["tag"])
    compute_cleanup()


if __name__ == "__main__":
    cli(main, Config)
