"""Measuring: bits per byte of text, accuracy of tasks with its standard error, pass@k."""

import json
import math
import random
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from nanochat.common import (
    DataError,
    all_reduce_sum,
    progress,
    rank_and_world,
    write_atomic,
)
from nanochat.conversation import render_for_completion
from nanochat.dataloader import batches
from nanochat.engine import Engine
from nanochat.gpt import GPT

LOGITS_AT_ONCE = 2**25  # float32 numbers: 128 MiB


@dataclass(frozen=True)
class Result:
    """How a task went: `correct` of `total` examples."""

    name: str
    kind: str
    correct: int
    total: int
    cut: int = 0  # prompts that lost their oldest tokens because the context is short

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def stderr(self) -> float:
        """The standard error of the accuracy: sqrt(p (1 - p) / n)."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.total)

    def __str__(self) -> str:
        """Example: "arithmetic: 96.0% ± 1.4% (n = 200)"."""
        return f"{self.name}: {self.accuracy:.1%} ± {self.stderr:.1%} (n = {self.total:,})" + (
            f", {self.cut:,} prompts cut to the context" if self.cut else ""
        )


# ---------------------------------------------------------------- bits per byte


@torch.no_grad()
def bits_per_byte(
    model: GPT, batches: Iterable, num_batches: int, token_bytes
) -> tuple[float, int]:
    """How many bits the model needs for a byte of text, and over how many bytes of all ranks that
    was measured.

    batches: Batch of inputs, targets (B, T), targets -1 where nothing is measured; each rank brings
    its own. token_bytes: (V,) bytes of each id (`Tokenizer.token_bytes()`); ids of 0 bytes, the
    special ones, are left out. Unlike the loss, the figure does not depend on the tokenizer. Raises
    DataError if there is no byte to measure.

    Example: a model that gives every one of 2^13 ids the same probability, on tokens of 4 bytes
    each: 13 / 4 = 3.25.
    """
    token_bytes = torch.as_tensor(token_bytes, dtype=torch.int64, device=model.device)
    step = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    sums = torch.zeros(2, dtype=torch.float32 if model.device.type == "mps" else torch.float64)
    sums = sums.to(model.device)  # nats, bytes
    for batch in islice(batches, num_batches):
        targets = batch.targets.to(model.device)
        sizes = torch.where(targets >= 0, token_bytes[targets.clamp(min=0)], 0)
        counted = sizes > 0  # (B, T)
        features = model.features(batch.inputs.to(model.device))[counted]  # (N, D)
        for part, part_targets in zip(
            features.split(step), targets[counted].split(step), strict=True
        ):
            nll = F.cross_entropy(model.logits(part), part_targets, reduction="none")
            sums[0] += nll.to(sums.dtype).sum()
        sums[1] += sizes.sum()
    nats, num_bytes = all_reduce_sum(sums).tolist()
    if num_bytes == 0:
        raise DataError(
            "bits per byte: the batches hold no text to measure. Give more batches, or check that "
            "the validation split is not empty"
        )
    return nats / (math.log(2) * num_bytes), int(num_bytes)


def measure_rows(
    model: GPT, tokenizer, rows, num_tokens: int, device_batch_size: int
) -> tuple[float, int]:
    """bits_per_byte over about `num_tokens` tokens of rows (see dataloader.py), at most all of them
    once, dealt to the ranks.
    """
    rank, world_size = rank_and_world()
    wanted = min(len(rows), max(1, num_tokens // rows.max_length))
    at_once = min(device_batch_size, max(1, wanted // world_size)) * world_size
    source = batches(
        rows,
        rows_per_step=at_once,
        device_batch_size=at_once // world_size,
        rank=rank,
        world_size=world_size,
        device=model.device,
        pad_id=tokenizer.bos,
    )
    with closing(source):
        return bits_per_byte(model, source, wanted // at_once or 1, tokenizer.token_bytes())


# ---------------------------------------------------------------- tasks


def evaluate_task(
    name: str,
    task,
    engine: Engine,
    *,
    limit: int | None = None,
    batch_size: int = 32,
    max_tokens: int = 256,
    seed: int = 42,
    answers_path: Path | str | None = None,
) -> Result:
    """The share of a task's examples that the model gets right; all ranks take part and get the
    same Result.

    kind "choice": the letter with the highest logit after the prompt. kind "generate": the most
    likely answer, tools included, of at most `max_tokens`. `limit` takes that many examples, drawn
    by `seed`. With answers_path, one JSON line an example is written there: index, prompt,
    completion, right.
    """
    chosen = list(range(len(task)))
    if limit is not None and limit < len(task):
        chosen = sorted(random.Random(seed).sample(chosen, max(limit, 0)))
    if not chosen:
        raise DataError(f"task {name} has no examples (limit {limit}); nothing can be measured")
    rank, world_size = rank_and_world()
    mine = chosen[rank::world_size]
    conversations = [task[i] for i in mine]
    room = 0 if task.kind == "choice" else min(max_tokens, engine.model.config.sequence_len // 2)
    prompts, cut = fit_prompts(conversations, engine, room)
    with progress(name, len(mine), "examples") as advance:
        if task.kind == "choice":
            letters = [task.choices(i) for i in mine]
            completions = answer_choices(engine, prompts, letters, batch_size, advance)
        else:
            completions = answer_freely(engine, prompts, max_tokens, batch_size, advance)
    records = [
        {
            "index": i,
            "prompt": engine.tokenizer.decode(prompt),
            "completion": completion,
            "right": bool(task.evaluate(conversation, completion)),
        }
        for i, prompt, conversation, completion in zip(
            mine, prompts, conversations, completions, strict=True
        )
    ]
    records = gather(records)
    if answers_path is not None and rank == 0:
        lines = (json.dumps(record, ensure_ascii=False) for record in records)
        write_atomic(answers_path, "".join(line + "\n" for line in lines))
    correct = sum(record["right"] for record in records)
    cut = sum(gather([cut]))
    return Result(name, task.kind, correct, len(records), cut)


def fit_prompts(conversations, engine: Engine, room: int) -> tuple[list[list[int]], int]:
    """The prompts as ids, cut on the left where less than `room` tokens of context would be left;
    and how many were."""
    longest = engine.model.config.sequence_len - max(room, 1)
    prompts = [render_for_completion(c, engine.tokenizer) for c in conversations]
    return [p[-longest:] for p in prompts], sum(len(p) > longest for p in prompts)


def answer_freely(engine: Engine, prompts, max_tokens: int, batch_size: int, advance) -> list[str]:
    """The most likely completion of each prompt."""
    completions = engine.complete(
        prompts, max_tokens=max_tokens, temperature=0, max_batch=batch_size, on_end=advance
    )
    return [samples[0] for samples in completions]


def answer_choices(engine: Engine, prompts, letters, batch_size: int, advance) -> list[str]:
    """For each prompt, the one of its letters that the model finds most likely to come next.

    Prompts of similar length share a batch. Raises DataError for a letter that is not a single
    token.
    """
    answers = [""] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    for start in range(0, len(prompts), batch_size):
        some = by_length[start : start + batch_size]
        logits = engine.next_logits([prompts[i] for i in some]).cpu()  # (B, V)
        for row, i in zip(logits, some, strict=True):
            ids = [letter_id(engine.tokenizer, letter) for letter in letters[i]]
            answers[i] = letters[i][int(row[ids].argmax())]
        advance(len(some))
    return answers


def letter_id(tokenizer, letter: str) -> int:
    ids = tokenizer.encode_ordinary(letter)
    if len(ids) != 1:
        raise DataError(
            f"choice {letter!r} is {len(ids)} tokens; multiple choice compares the "
            f"logits of single tokens. Use single letters"
        )
    return ids[0]


def gather(items: list) -> list:
    """All ranks' items, on every rank, dealt back into the order that `items[rank::world_size]`
    took them from."""
    if rank_and_world()[1] == 1:
        return items
    of_rank: list = [None] * rank_and_world()[1]
    dist.all_gather_object(of_rank, items)
    longest = max(len(part) for part in of_rank)
    return [part[i] for i in range(longest) for part in of_rank if i < len(part)]


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that one of k samples is right, estimated without bias from n samples of which
    `correct` are (Chen et al. 2021, equation 1): 1 - C(n - c, k) / C(n, k).

    Example: pass_at_k(4, 1, 2) == 0.5
    """
    assert 0 <= correct <= n and 1 <= k <= n
    return 1 - math.comb(n - correct, k) / math.comb(n, k)
