"""Measuring a chat model on tasks: accuracy with its standard error, pass@k, ChatCORE."""

import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nanochat.common import ConfigError, DataError, gather, progress, rank_and_world
from nanochat.conversation import render_for_completion
from nanochat.engine import Engine
from nanochat.files import write_atomic

CHATCORE = ("arc-easy", "arc-challenge", "mmlu", "gsm8k", "humaneval")
PASS_AT = (1, 10, 100)  # as in Chen et al. 2021


@dataclass(frozen=True)
class Result:
    """How many of each example's `num_samples` answers were right."""

    name: str
    kind: str
    right: tuple[int, ...]
    num_samples: int = 1
    temperature: float = 0.0
    baseline: float | None = None  # the accuracy of chance, where a published figure says so
    cut: int = 0  # prompts that lost their oldest tokens to a short context
    merged: int = 0  # CORE: a token reaches from the context into the continuation
    phrasings: tuple[str | None, ...] = ()  # of each example: "trained", "new", None where unknown

    @property
    def total(self) -> int:
        return len(self.right)

    @property
    def accuracy(self) -> float:
        """The share of right answers, which is pass@1."""
        return self.pass_at(1)[0]

    @property
    def stderr(self) -> float:
        """Of the accuracy; with one answer an example it is sqrt(p (1 - p) / n)."""
        return self.pass_at(1)[1]

    @property
    def centred(self) -> float | None:
        """(accuracy - baseline) / (1 - baseline): 0 for chance, 1 for all right."""
        chance = self.baseline
        return None if chance is None else (self.accuracy - chance) / (1 - chance)

    @property
    def centred_stderr(self) -> float:
        return self.stderr / (1 - self.baseline)

    def pass_at(self, k: int) -> tuple[float, float]:
        """(pass@k, its standard error) over the examples x: mean(x), and
        sqrt(sum (x - mean)^2 / n) / sqrt(n)."""
        values = [pass_at_k(self.num_samples, right, k) for right in self.right]
        return statistics.fmean(values), statistics.pstdev(values) / math.sqrt(len(values))

    def ks(self) -> list[int]:
        """The k for which pass@k is given; none for multiple choice."""
        if self.kind == "choice":
            return []
        return sorted({k for k in (*PASS_AT, self.num_samples) if k <= self.num_samples})

    def figures(self) -> dict[str, float]:
        """For metrics.jsonl, for example {"accuracy/mmlu": 0.31, "stderr/mmlu": ...}; those of
        "facts (trained phrasings)" and "facts (new phrasings)", too."""
        found = {"accuracy": self.accuracy, "stderr": self.stderr, "examples": self.total}
        if self.centred is not None:
            found |= {"centred": self.centred, "baseline": self.baseline}
        for k in self.ks():
            found[f"pass@{k}"], found[f"stderr_pass@{k}"] = self.pass_at(k)
        figures = {f"{key}/{self.name}": value for key, value in found.items()}
        for phrasing in ("trained", "new"):  # wordings of the training data, and others
            pairs = zip(self.right, self.phrasings, strict=False)
            if right := tuple(n for n, asked in pairs if asked == phrasing):
                name = f"{self.name} ({phrasing} phrasings)"
                figures |= replace(self, name=name, right=right, phrasings=()).figures()
        return figures

    def __str__(self) -> str:
        """Example: "mmlu: 61.0% ± 4.9%, centred 0.4800 (n = 100)"."""
        parts = [f"{self.name}: {self.accuracy:.1%} ± {self.stderr:.1%}"]
        parts += [] if self.centred is None else [f"centred {self.centred:.4f}"]
        samples = f" x {self.num_samples}" if self.num_samples > 1 else ""
        parts[-1] += f" (n = {self.total:,}{samples})"
        parts += ["pass@{} {:.1%} ± {:.1%}".format(k, *self.pass_at(k)) for k in self.ks()[1:]]
        parts += [f"{self.cut:,} prompts cut to the context"] if self.cut else []
        parts += [f"{self.merged:,} with a token across the boundary"] if self.merged else []
        return ", ".join(parts)


def mean_centred(results: Sequence[Result]) -> tuple[float, float]:
    """(mean of the centred accuracies, its standard error), as if the tasks were independent (CORE
    has HellaSwag twice, so its true error is a little larger)."""
    error = math.hypot(*(result.centred_stderr for result in results)) / len(results)
    return math.fsum(result.centred for result in results) / len(results), error


def missing_of_chatcore(results: Sequence[Result]) -> list[str]:
    """The tasks whose greedy answers ChatCORE still needs."""
    return [n for n in CHATCORE if not any(r.name == n and r.temperature == 0 for r in results)]


def chatcore(results: Sequence[Result]) -> tuple[float, float]:
    """(ChatCORE, its standard error): the mean of the five tasks' centred accuracies.

    Example: accuracies of 0.3561, 0.2875, 0.3111, 0.025, 0.0671, in CHATCORE's order, give 0.0730.
    """
    five = [result for result in results if result.name in CHATCORE]
    assert sorted(result.name for result in five) == sorted(CHATCORE)
    return mean_centred(five)


def figures(results: Sequence[Result], controls: dict[str, Result]) -> dict[str, float]:
    """Everything for metrics.jsonl; `controls`: the results under a counterfactual, by task."""
    found: dict[str, float] = {}
    for result in results:
        found |= result.figures()
    for name, control in controls.items():
        found |= {f"control/{name}": control.accuracy, f"control_stderr/{name}": control.stderr}
    if not missing_of_chatcore(results):
        found["chatcore"], found["chatcore_stderr"] = chatcore(results)
    return found


def evaluate_task(
    name: str,
    task,
    engine: Engine,
    *,
    limit: int | None = None,
    batch_size: int = 32,
    max_tokens: int = 256,
    num_samples: int = 1,
    temperature: float | None = None,
    seed: int = 42,
    answers_path: Path | str | None = None,
) -> Result:
    """How many of a task's examples the model gets right. All ranks take part and get the result.

    A choice is the letter with the highest logit after the prompt; else `num_samples` answers of
    at most `max_tokens`, tools included, are drawn at `temperature` (None: 0, or 0.8 of several).
    `limit` examples are drawn by `seed`. answers_path: a file for one JSON line an answer.

    Example: evaluate_task("mmlu", MMLU("test"), engine, limit=100).accuracy
    """
    if temperature is None:
        temperature = 0.8 if num_samples > 1 else 0.0
    if num_samples < 1 or (num_samples > 1 and temperature == 0):
        raise ConfigError(
            f"{num_samples} answers to a question at temperature {temperature}: choose 1, or a "
            f"temperature above 0, at which they differ"
        )
    chosen = range(len(task))
    if limit is not None and limit < len(task):
        chosen = sorted(random.Random(seed).sample(chosen, max(limit, 0)))
    if not chosen:
        raise DataError(f"task {name} has no examples (limit {limit}); nothing can be measured")
    rank, world_size = rank_and_world()
    mine = chosen[rank::world_size]
    conversations = [task[i] for i in mine]
    if choice := task.kind == "choice":
        num_samples, temperature, max_tokens = 1, 0.0, 1
    prompts, cut = fit_prompts(conversations, engine, max_tokens)
    with progress(name, len(mine) * num_samples, "answers") as advance:
        if choice:
            letters = [task.choices(i) for i in mine]
            answers = answer_choices(engine, prompts, letters, batch_size, advance)
        else:
            how = {"num_samples": num_samples, "max_tokens": max_tokens, "seed": seed}
            how |= {"temperature": temperature, "max_batch": batch_size, "on_end": advance}
            completions = engine.complete(prompts, **how)
            answers = [[{"completion": text} for text in texts] for texts in completions]
    flat = [answer for samples in answers for answer in samples]
    asked = [conversation for conversation in conversations for _ in range(num_samples)]
    verdicts = task.evaluate_all(asked, [answer["completion"] for answer in flat])
    for conversation, answer, verdict in zip(asked, flat, verdicts, strict=True):
        answer |= verdict | {"phrasing": conversation.get("phrasing")}
    texts = [engine.tokenizer.decode(prompt) for prompt in prompts]
    every = gather(list(zip(mine, texts, answers, strict=True)))
    if answers_path is not None and rank == 0:
        lines = (
            json.dumps({"index": i, "sample": s, "prompt": prompt, **answer}, ensure_ascii=False)
            for i, prompt, samples in every
            for s, answer in enumerate(samples)
        )
        # subtle: a judge's text may hold half of a surrogate pair, which is not valid UTF-8
        text = "".join(f"{line}\n" for line in lines)
        write_atomic(answers_path, text.encode("utf-8", "backslashreplace"))
    right = tuple(sum(answer["right"] for answer in samples) for *_, samples in every)
    phrasings = tuple(samples[0]["phrasing"] for *_, samples in every)
    figures = num_samples, temperature, task.baseline, sum(gather([cut]))
    return Result(name, task.kind, right, *figures, phrasings=phrasings)


def fit_prompts(conversations, engine: Engine, max_tokens: int) -> tuple[list[list[int]], int]:
    """The prompts as ids, and how many lost their oldest tokens: an answer gets `max_tokens` of the
    context, but at most half."""
    # A model from elsewhere brings its own chat template, in its tokenizer.
    own = getattr(engine.tokenizer, "render_for_completion", None)
    render = own or partial(render_for_completion, tokenizer=engine.tokenizer)
    context = engine.model.config.sequence_len
    longest = context - max(min(max_tokens, context // 2), 1)
    prompts = [render(conversation) for conversation in conversations]
    return [p[-longest:] for p in prompts], sum(len(p) > longest for p in prompts)


def answer_choices(engine: Engine, prompts, letters, batch_size: int, advance) -> list[list[dict]]:
    """For each prompt the likeliest of its letters, and their logits; DataError for a letter that
    is not a single token."""

    def token(letter: str) -> int:
        ids = engine.tokenizer.encode_ordinary(letter)
        if len(ids) != 1:
            raise DataError(f"choice {letter!r} is {len(ids)} tokens; use letters that are one")
        return ids[0]

    answers: list[list[dict]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    for start in range(0, len(prompts), batch_size):
        some = by_length[start : start + batch_size]
        logits = engine.next_logits([prompts[i] for i in some]).float().cpu()  # (B, V)
        for row, i in zip(logits, some, strict=True):
            found = {letter: float(row[token(letter)]) for letter in letters[i]}
            shown = {letter: round(logit, 2) for letter, logit in found.items()}
            answers[i] = [{"completion": max(found, key=found.get), "logits": shown}]
        advance(len(some))
    return answers


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The unbiased estimate, from n samples, of the chance that one of k is right:
    1 - C(n - correct, k) / C(n, k) (Chen et al. 2021, equation 1).

    Example: pass_at_k(4, 1, 2) == 0.5
    """
    assert 0 <= correct <= n and 1 <= k <= n
    return 1 - math.comb(n - correct, k) / math.comb(n, k)
