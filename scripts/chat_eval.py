"""Measures a chat model on tasks: accuracy with its standard error, pass@k, ChatCORE.

    python -m scripts.chat_eval -i sft --control
    python -m scripts.chat_eval -i mid -a "arithmetic|gsm8k@./gsm8k-test.parquet" --limit=200
    python -m scripts.chat_eval -a humaneval --num-samples=20 --temperature=0.8

Multiple choice is decided by the logits of the letters, the rest by what is generated. Figures go
to the run's metrics.jsonl, every answer to answers/<task>-step<n>.jsonl beside it.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nanochat.common import ConfigError, DataError, compute_cleanup, compute_init, print0
from nanochat.configurator import cli
from nanochat.evaluation.hf_baseline import open_engine
from nanochat.evaluation.tasks import Result, evaluate_task, figures, missing_of_chatcore
from nanochat.inference import calculator
from nanochat.report.evaluations import chat_tables
from nanochat.report.page import print_table
from nanochat.report.report import remake
from nanochat.tools.sandbox import Sandbox, python_tool
from nanochat.training.log import append_metrics
from tasks.catalog import task_or_why_not
from tasks.control import ControlledTool, counterfactual
from tasks.task import GeneratedTask, Task


@dataclass(frozen=True)
class Config:
    source: Annotated[str, tyro.conf.arg(aliases=["-i"])] = "sft"
    """Stage of the model (base, mid, sft, rl), or a checkpoint's folder."""
    tasks: Annotated[str, tyro.conf.arg(aliases=["-a"])] = (
        "arc-easy|arc-challenge|mmlu|gsm8k|humaneval|spelling|arithmetic|facts|identity|unknown"
    )
    """name[@source]|...; source is a local file or folder, or another hub id."""
    hf_path: Path | None = None
    """A Hugging Face folder with any causal model to measure instead; it has no tools."""
    model_tag: str | None = None
    """Run to take; default: the newest."""
    step: int | None = None
    """Its step; default: the newest."""
    limit: int | None = None
    """Examples of each task; default: all of a data set, 500 of a task that is made by rule."""
    num_samples: int = 1
    """Answers to each question of a generated task; several give pass@k, but no ChatCORE."""
    temperature: float | None = None
    """Of generated answers; default: 0, the likeliest, or 0.8 where there are several."""
    control: bool = False
    """Also ask with the options in another order, or with a tool that answers wrongly."""
    tool: Literal["calculator", "python"] = "calculator"
    """What runs the model's tool calls; python is any program, in the sandbox."""
    unsafe_execution: bool = False
    """Run the model's programs even where no sandbox can hold them."""
    int8: bool = False
    """On a CPU: measure with 8 bits of each weight; figures are printed, not kept in the run."""
    batch_size: int = 32
    """Rows that one device computes at a time."""
    max_tokens: int = 512
    """Longest answer."""
    seed: int = 42
    """Of the choice of examples under a limit, of sampling, and of the options' other order."""
    device_type: str = "auto"
    """auto, cuda, mps or cpu."""


def main(config: Config) -> None:
    *_, device = compute_init(config.device_type)
    names = ("batch_size", "max_tokens", "num_samples", "temperature", "seed")
    options = {name: getattr(config, name) for name in names}
    results, controls = [], {}
    if config.hf_path is not None and (config.tool == "python" or config.int8):
        raise ConfigError("--hf-path measures a model without tools; leave --tool, --int8 away")
    with ExitStack() as stack:

        @cache
        def open_sandbox():  # when it is first needed: many machines have none
            sandbox = stack.enter_context(Sandbox(unsafe=config.unsafe_execution))
            print0(f"a model's programs run in the tier {sandbox.tier!r}")
            return sandbox

        run = calculator.evaluate if config.tool == "calculator" else python_tool(open_sandbox())
        tool = None if config.hf_path else ControlledTool(run)
        weights, kept_as = ("int8", "-int8") if config.int8 else (None, "")
        engine, folder, place, _ = open_engine(config, device, tool, weights)

        def evaluate(task: Task, name: str) -> Result:
            by_rule = config.limit is None and isinstance(task, GeneratedTask)
            limit, started = 500 if by_rule else config.limit, time.perf_counter()
            path = folder / "answers" / f"{name}-step{place['step']}{kept_as}.jsonl"
            result = evaluate_task(name, task, engine, limit=limit, answers_path=path, **options)
            print0(f"{result} in {time.perf_counter() - started:.0f} s")
            return result

        try:
            for text in filter(None, (part.strip() for part in config.tasks.split("|"))):
                task = task_or_why_not(text, device, open_sandbox)
                if isinstance(task, str):
                    continue
                results.append(evaluate(task, task.name))
                if config.control:
                    with counterfactual(task, tool, config.seed) as changed:
                        if changed is not None:
                            controls[task.name] = evaluate(changed, f"{task.name}-control")
        finally:  # what is measured is kept, whatever the rest runs into
            if results:
                found = figures(results, controls)
                for table in chat_tables({place["stage"]: found}):
                    print_table(table)
                if not config.int8:
                    append_metrics(folder, place | found)
                if missing := ", ".join(missing_of_chatcore(results)):
                    print0(f"ChatCORE: not given, for want of greedy answers to {missing}")
                if config.hf_path is None and not config.int8:
                    remake(folder.name)
    if not results:
        raise DataError(f"none of {config.tasks} could be run; the lines above say why")
    compute_cleanup()


if __name__ == "__main__":
    cli(main, Config)
