"""Measuring a chat model on tasks: accuracy with its standard error, pass@k, ChatCORE."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.common import ConfigError, DataError, gather, progress, rank_and_world
from nanochat.conversation import render_for_completion
from nanochat.engine import Engine
from nanochat.files import write_atomic

CHATCORE = ("arc-easy", "arc-challenge", "mmlu", "gsm8k", "humaneval")
PASS_AT = (1, 10, 100)  # as in Chen et al. 2021; and the number of samples itself


@dataclass(frozen=True)
class Result:
    """How a task went: how many of each example's `num_samples` answers were right.

    `baseline` is the accuracy that chance gives, None where no published figure says so.
    """

    name: str
    kind: str
    right: tuple[int, ...]
    num_samples: int = 1
    temperature: float = 0.0
    baseline: float | None = None
    cut: int = 0  # prompts that lost their oldest tokens because the context is short
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
        """The standard error of the accuracy; of one answer an example sqrt(p (1 - p) / n)."""
        return self.pass_at(1)[1]

    @property
    def centred(self) -> float | None:
        """0 for what chance gives, 1 for all right: (accuracy - baseline) / (1 - baseline)."""
        if self.baseline is None:
            return None
        return (self.accuracy - self.baseline) / (1 - self.baseline)

    def pass_at(self, k: int) -> tuple[float, float]:
        """(pass@k, its standard error): the mean over the examples, whose answers depend on each
        other while the examples do not."""
        return mean_and_stderr([pass_at_k(self.num_samples, right, k) for right in self.right])

    def ks(self) -> list[int]:
        """The k for which pass@k is given: of a generated task only, none above the samples."""
        if self.kind == "choice":
            return []
        return sorted({k for k in (*PASS_AT, self.num_samples) if k <= self.num_samples})

    def by_phrasing(self) -> list["Result"]:
        """The Results of the examples asked as in training, and of those in wordings held out, as
        "facts (trained phrasings)" and "facts (new phrasings)"; none where that is not known."""
        parts = []
        for phrasing in ("trained", "new"):
            pairs = zip(self.right, self.phrasings, strict=False)
            if right := tuple(n for n, found in pairs if found == phrasing):
                name = f"{self.name} ({phrasing} phrasings)"
                parts.append(replace(self, name=name, right=right, phrasings=()))
        return parts

    def figures(self) -> dict[str, float]:
        """What goes to metrics.jsonl. Example: {"accuracy/mmlu": 0.31, "stderr/mmlu": ...}."""
        figures = {
            f"accuracy/{self.name}": self.accuracy,
            f"stderr/{self.name}": self.stderr,
            f"examples/{self.name}": self.total,
        }
        if self.centred is not None:
            figures[f"centred/{self.name}"] = self.centred
        for k in self.ks():
            figures[f"pass@{k}/{self.name}"], figures[f"stderr_pass@{k}/{self.name}"] = (
                self.pass_at(k)
            )
        for part in self.by_phrasing():
            figures |= part.figures()
        return figures

    def __str__(self) -> str:
        """Example: "arithmetic: 96.0% ± 1.4% (n = 200)"."""
        text = f"{self.name}: {self.accuracy:.1%} ± {self.stderr:.1%} (n = {self.total:,}"
        text += f" x {self.num_samples})" if self.num_samples > 1 else ")"
        for k in self.ks()[1:]:
            value, error = self.pass_at(k)
            text += f", pass@{k} {value:.1%} ± {error:.1%}"
        return text + (f", {self.cut:,} prompts cut to the context" if self.cut else "")


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and the standard error that n independent draws of these values give it:
    sqrt(sum (x - mean)^2 / n) / sqrt(n).

    Example: mean_and_stderr([1, 1, 1, 0]) == (0.75, 0.2165...), which is sqrt(0.75 * 0.25 / 4)
    """
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in values)) / len(values)


def missing_of_chatcore(results: Sequence[Result]) -> list[str]:
    """The tasks without whose greedy answers there is no ChatCORE."""
    greedy = {result.name for result in results if result.temperature == 0}
    return [name for name in CHATCORE if name not in greedy]


def chatcore(results: Sequence[Result]) -> tuple[float, float]:
    """(ChatCORE, its standard error): the mean of the centred scores of the five tasks CHATCORE.

    The tasks are independent, so their variances add: sqrt(sum (stderr / (1 - baseline))^2) / 5.
    Example: accuracies of 0.3561, 0.2875, 0.3111, 0.025, 0.0671, in that order, give 0.0730.
    """
    five = [result for result in results if result.name in CHATCORE]
    assert sorted(result.name for result in five) == sorted(CHATCORE)
    errors = [result.stderr / (1 - result.baseline) for result in five]
    return math.fsum(r.centred for r in five) / len(five), math.hypot(*errors) / len(five)


def figures(results: Sequence[Result], controls: dict[str, Result]) -> dict[str, float]:
    """All that goes to metrics.jsonl, by name; `controls` are the counterfactuals' by task."""
    found: dict[str, float] = {}
    for result in results:
        found |= result.figures()
    for name, control in controls.items():
        found[f"control/{name}"] = control.accuracy
        found[f"control_stderr/{name}"] = control.stderr
    if not missing_of_chatcore(results):
        found["chatcore"], found["chatcore_stderr"] = chatcore(results)
    return found


def table(results: Sequence[Result], controls: dict[str, Result], not_run: dict[str, str]) -> str:
    """The same for people: a line a task, those not run with the reason, ChatCORE."""
    lines = [f"{'task':<16}{'kind':<10}{'accuracy':>9}  ± stderr{'centred':>9}{'n':>8}"]
    lines[0] += f"{'control':>10}  ± stderr" if controls else ""
    for r in results:
        centred = "-" if r.centred is None else f"{r.centred:.4f}"
        line = f"{r.name:<16}{r.kind:<10}{r.accuracy:>9.1%}  ± {r.stderr:<6.1%}{centred:>9}"
        line += f"{r.total:>8,}"
        if r.name in controls:
            line += f"{controls[r.name].accuracy:>10.1%}  ± {controls[r.name].stderr:.1%}"
        lines.append(line)
        for k in r.ks()[1:]:
            value, error = r.pass_at(k)
            lines.append(f"{f'  pass@{k}':<26}{value:>9.1%}  ± {error:.1%}")
        for part in r.by_phrasing():
            label = part.name.removeprefix(r.name)
            lines.append(
                f" {label:<25}{part.accuracy:>9.1%}  ± {part.stderr:<6.1%}{part.total:>17,}"
            )
    lines += [f"{name:<15} not run: {why}" for name, why in not_run.items()]
    if missing := missing_of_chatcore(results):
        wanted = ", ".join(missing)
        return "\n".join([*lines, f"ChatCORE: not given, for want of greedy answers to {wanted}"])
    value, error = chatcore(results)
    return "\n".join([*lines, f"ChatCORE: {value:.4f} ± {error:.4f}"])


# ---------------------------------------------------------------- running


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
    """How many of a task's examples the model gets right; all ranks take part and get the same
    Result.

    kind "choice": the letter with the highest logit after the prompt, once. kind "generate":
    `num_samples` answers at `temperature` (None: 0, the most likely, or 0.8 of several samples),
    tools included, of at most `max_tokens`. `limit` takes that many examples, drawn by `seed`. With
    answers_path, one JSON line an answer is written there: index and sample, prompt, completion,
    and what the task says about it (see Task.evaluate_all): extracted, expected, right.

    Example: evaluate_task("mmlu", MMLU("test"), engine, limit=100).accuracy
    """
    if temperature is None:
        temperature = 0.8 if num_samples > 1 else 0.0
    if num_samples < 1 or (num_samples > 1 and temperature == 0):
        raise ConfigError(
            f"{num_samples} answers to a question at temperature {temperature}: choose 1, or more "
            "at a temperature above 0 (at 0 they would all be the same)"
        )
    chosen = list(range(len(task)))
    if limit is not None and limit < len(task):
        chosen = sorted(random.Random(seed).sample(chosen, max(limit, 0)))
    if not chosen:
        raise DataError(f"task {name} has no examples (limit {limit}); nothing can be measured")
    rank, world_size = rank_and_world()
    mine = chosen[rank::world_size]
    conversations = [task[i] for i in mine]
    choice = task.kind == "choice"
    samples = 1 if choice else num_samples
    room = 0 if choice else min(max_tokens, engine.model.config.sequence_len // 2)
    prompts, cut = fit_prompts(conversations, engine, room)
    with progress(name, len(mine) * samples, "answers") as advance:
        if choice:
            letters = [task.choices(i) for i in mine]
            answers = answer_choices(engine, prompts, letters, batch_size, advance)
        else:
            completions = engine.complete(
                prompts,
                num_samples=samples,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                max_batch=batch_size,
                on_end=advance,
            )
            answers = [[{"completion": text} for text in texts] for texts in completions]
    judge(task, conversations, answers)
    texts = [engine.tokenizer.decode(prompt) for prompt in prompts]
    every = gather(list(zip(mine, texts, answers, strict=True)))
    if answers_path is not None and rank == 0:
        write_answers(answers_path, every)
    right = tuple(sum(answer["right"] for answer in answers) for _, _, answers in every)
    warmth = 0.0 if choice else temperature
    cut = sum(gather([cut]))
    phrasings = tuple(answers[0].get("phrasing") for _, _, answers in every)
    return Result(name, task.kind, right, samples, warmth, task.baseline, cut, phrasings)


def judge(task, conversations: list[dict], answers: list[list[dict]]) -> None:
    """Adds to every answer what the task says about its completion."""
    flat = [answer for samples in answers for answer in samples]
    asked = [c for c, samples in zip(conversations, answers, strict=True) for _ in samples]
    verdicts = task.evaluate_all(asked, [answer["completion"] for answer in flat])
    for conversation, answer, verdict in zip(asked, flat, verdicts, strict=True):
        answer |= {k: conversation[k] for k in ("phrasing",) if k in conversation} | verdict


def write_answers(path: Path | str, every: list[tuple[int, str, list[dict]]]) -> None:
    """One JSON line an answer, in order of index and sample."""
    lines = [
        json.dumps(
            {"index": index, "sample": number, "prompt": prompt, **answer}, ensure_ascii=False
        )
        for index, prompt, answers in every
        for number, answer in enumerate(answers)
    ]
    # subtle: half of a surrogate pair, which a judge's text may hold, is no UTF-8
    text = "".join(line + "\n" for line in lines)
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def fit_prompts(conversations, engine: Engine, room: int) -> tuple[list[list[int]], int]:
    """The prompts as ids, cut on the left where less than `room` tokens of context would be left;
    and how many were."""
    longest = engine.model.config.sequence_len - max(room, 1)
    # A model from elsewhere brings its own chat template, in its tokenizer.
    own = getattr(engine.tokenizer, "render_for_completion", None)
    render = own or (lambda c: render_for_completion(c, engine.tokenizer))
    prompts = [render(conversation) for conversation in conversations]
    return [p[-longest:] for p in prompts], sum(len(p) > longest for p in prompts)


def answer_choices(engine: Engine, prompts, letters, batch_size: int, advance) -> list[list[dict]]:
    """For each prompt, as the completion, the one of its letters that the model finds most likely
    to come next; and the logit of each.

    Prompts of similar length share a batch. Raises DataError for a letter that is not a single
    token.
    """
    answers: list[list[dict]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    for start in range(0, len(prompts), batch_size):
        some = by_length[start : start + batch_size]
        logits = engine.next_logits([prompts[i] for i in some]).float().cpu()  # (B, V)
        for row, i in zip(logits, some, strict=True):
            found = row[[letter_id(engine.tokenizer, letter) for letter in letters[i]]]
            shown = {x: round(v, 2) for x, v in zip(letters[i], found.tolist(), strict=True)}
            best = letters[i][int(found.argmax())]
            answers[i] = [{"completion": best, "logits": shown}]
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


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that one of k samples is right, estimated without bias from n samples of which
    `correct` are (Chen et al. 2021, equation 1): 1 - C(n - c, k) / C(n, k).

    Example: pass_at_k(4, 1, 2) == 0.5
    """
    assert 0 <= correct <= n and 1 <= k <= n
    return 1 - math.comb(n - correct, k) / math.comb(n, k)
