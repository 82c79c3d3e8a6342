"""Speed of the CORE metric beside its plain twin (one row at a time, logits after every token).

    python -m bench.core_eval --bundle eval_bundle.zip
    python -m bench.core_eval --tasks copa,squad --max-per-task 10 --repeats 1

A model of random weights; a tokenizer trained on the bundle's own text. Both programs score the
same token rows, in turns, task by task. Prints a table, how often their verdicts differ (compute
dtype rounds), and writes bench/results/core_eval-<machine>.json.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from bench.record import write_record
from nanochat.common import choose_dtype, compute_init
from nanochat.configurator import cli
from nanochat.evaluation.core import is_right
from nanochat.evaluation.core_bundle import Bundle, CoreTask, find_bundle
from nanochat.evaluation.core_loglikelihood import Score, score
from nanochat.evaluation.core_prompts import Example, make_examples, subsample
from nanochat.gpt import GPT, GPTConfig
from nanochat.hardware import synchronize
from nanochat.inference.fused_model import FusedModel
from nanochat.tokenizer import Tokenizer


@dataclass(frozen=True)
class Config:
    depth: int = 4
    """Layers of the model."""
    vocab_size: int = 8192
    """Ids of the tokenizer."""
    head_dim: int = 64
    """Width of an attention head."""
    sequence_len: int = 2048
    """Context; longer prompts are cut."""
    max_per_task: int = 100
    """Examples of each task."""
    tasks: str = ""
    """Labels of tasks, with commas between; default: all."""
    tokens_at_once: int = 16384
    """Tokens that the fast program reads at a time."""
    repeats: int = 3
    """Times that everything is measured; the table shows medians."""
    bundle: str | None = None
    """The evaluation bundle, a zip or folder; default: downloaded once."""
    device_type: str = "auto"
    """auto, cuda, mps or cpu."""


@torch.inference_mode()
def score_plainly(model, examples: Sequence[Example], tokens_at_once: int = 0) -> list[list[Score]]:
    """The slow twin of `score`: one row at a time, logits after every token.

    model: a FusedModel, whose GPT is read instead, or a TransformersModel.
    """
    compute = model.master if isinstance(model, FusedModel) else lambda i: model.model(i).logits
    scores = []
    for example in examples:
        scores.append([])
        for row in example.rows:
            ids = torch.from_numpy(row.ids.astype(np.int64)).to(model.device)
            logits = compute(ids[None, :-1])[0, row.start - 1 :].float()  # (n, V)
            loss = F.cross_entropy(logits, ids[row.start :]).item()
            is_greedy = bool((logits.argmax(-1) == ids[row.start :]).all())
            scores[-1].append(Score(loss, is_greedy))
    return scores


SCORERS = {"fast": score, "plain": score_plainly}


def texts(bundle: Bundle, rows_per_task: int = 300) -> Iterator[str]:
    """Some text of every task, for a tokenizer."""
    for task in bundle.tasks():
        for row in subsample(bundle.rows(task), rows_per_task):
            yield " ".join(str(value) for value in row.values())


def make_model(config: Config, vocab_size: int, device: torch.device) -> FusedModel:
    """Random weights, also where training begins with zeros: verdicts shall differ by example."""
    sizes = {"head_dim": config.head_dim, "sequence_len": config.sequence_len}
    model = GPT(GPTConfig.from_depth(config.depth, vocab_size, **sizes)).to(device)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.03
            parameter.add_(noise.to(device))
    model.compute_dtype = choose_dtype(device)[0]
    return FusedModel(model.to(model.compute_dtype))


def measure(task: CoreTask, rows, model: FusedModel, tokenizer, config: Config) -> dict:
    """One line of the table: seconds of both programs, and how far their scores are apart."""
    rows = subsample(rows, config.max_per_task)
    examples = make_examples(task, rows, range(len(rows)), tokenizer, config.sequence_len)
    seconds: dict[str, list[float]] = {name: [] for name in SCORERS}
    found: dict[str, list[list[Score]]] = {}
    for turn in range(config.repeats):
        for name in list(SCORERS)[:: 1 if turn % 2 else -1]:
            synchronize(model.device)
            start = time.perf_counter()
            found[name] = SCORERS[name](model, examples, config.tokens_at_once)
            synchronize(model.device)
            seconds[name].append(time.perf_counter() - start)
    pairs = list(zip(found["fast"], found["plain"], strict=True))
    verdicts = [
        [is_right(task, example.gold, scores) for scores in pair]
        for example, pair in zip(examples, pairs, strict=True)
    ]
    fast, plain = (statistics.median(seconds[name]) for name in ("fast", "plain"))
    return {
        "task": task.label,
        "examples": len(examples),
        "tokens": sum(len(row.ids) for example in examples for row in example.rows),
        "cut": sum(example.cut for example in examples),
        "fast_seconds": fast,
        "plain_seconds": plain,
        "ratio": plain / fast,
        "all_seconds": seconds,
        "verdicts_that_differ": sum(a != b for a, b in verdicts),
        "largest_difference_of_losses": max(
            abs(a.loss - b.loss) for mine, other in pairs for a, b in zip(mine, other, strict=True)
        ),
    }


def add_up(lines: list[dict], repeats: int) -> dict:
    """The last line: whole rounds of both programs, and the median of the rounds' ratios."""
    names = ("examples", "tokens", "cut", "verdicts_that_differ")
    total = {"task": "all"} | {name: sum(line[name] for line in lines) for name in names}
    rounds = {
        name: [sum(line["all_seconds"][name][i] for line in lines) for i in range(repeats)]
        for name in SCORERS
    }
    pairs = zip(rounds["plain"], rounds["fast"], strict=True)
    return total | {
        "fast_seconds": statistics.median(rounds["fast"]),
        "plain_seconds": statistics.median(rounds["plain"]),
        "ratio": statistics.median(plain / fast for plain, fast in pairs),
        "all_seconds": rounds,
        "largest_difference_of_losses": max(li["largest_difference_of_losses"] for li in lines),
    }


def print_table(lines: list[dict], title: str) -> None:
    names = ("task", "examples", "tokens", "cut", "fast, s", "plain, s", "faster", "differ")
    table = Table(title=title)
    for name in names:
        table.add_column(name, justify="left" if name == "task" else "right")
    for line in lines:
        table.add_row(
            line["task"],
            f"{line['examples']:,}",
            f"{line['tokens']:,}",
            f"{line['cut']:,}",
            f"{line['fast_seconds']:.2f}",
            f"{line['plain_seconds']:.2f}",
            f"{line['ratio']:.2f}x",
            str(line["verdicts_that_differ"]),
        )
    Console().print(table)


def main(config: Config) -> None:
    device = compute_init(config.device_type)[-1]
    bundle = find_bundle(config.bundle)
    tokenizer = Tokenizer.train(texts(bundle), config.vocab_size)
    model = make_model(config, tokenizer.vocab_size, device)
    wanted = [label for label in config.tasks.split(",") if label]
    lines = []
    for task in bundle.tasks():
        if not wanted or task.label in wanted:
            lines.append(measure(task, bundle.rows(task), model, tokenizer, config))
            line = lines[-1]
            print(f"{task.label}: {line['fast_seconds']:.2f} s, {line['ratio']:.2f}x", flush=True)
    lines.append(add_up(lines, config.repeats))
    dtype = str(model.dtype).removeprefix("torch.")
    print_table(lines, f"CORE, depth {config.depth}, context {config.sequence_len:,}, {dtype}")
    write_record("core_eval", config, device, {"compute_dtype": dtype, "results": lines})


if __name__ == "__main__":
    cli(main, Config)
