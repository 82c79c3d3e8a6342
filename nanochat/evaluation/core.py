"""The CORE metric: 22 tasks that a base model answers by what it finds likely, none by generating.

Multiple choice: the choice with the lowest mean loss over its own tokens. Schema: the contexts
differ, the continuation is scored. Language modelling: every token of the continuation is the
likeliest one. CORE is the mean of the tasks' centred accuracies: 0 for chance, 1 for no mistake
(DCLM, Li et al. 2024, arXiv:2406.11794).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from nanochat.common import ConfigError, DataError, gather, print0, progress, rank_and_world
from nanochat.evaluation.core_bundle import Bundle, CoreTask
from nanochat.evaluation.core_loglikelihood import Score, score
from nanochat.evaluation.core_prompts import Example, make_examples, subsample

EXAMPLES_AT_ONCE = 1024  # are tokenized together and sorted by length

Scorer = Callable[[object, Sequence[Example], int], list[list[Score]]]  # as score()


@dataclass(frozen=True)
class TaskScore:
    """How a task went: `correct` of `total` examples."""

    task: CoreTask
    correct: int
    total: int
    cut: int = 0  # examples that lost their oldest tokens because the context is short
    merged: int = 0  # where a token reaches from the context into the continuation
    seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def stderr(self) -> float:
        """The standard error of the accuracy: sqrt(p (1 - p) / n)."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.total)

    @property
    def centred(self) -> float:
        """(accuracy - baseline) / (1 - baseline): 0 for the baseline, 1 for no mistake."""
        return (self.accuracy - self.task.baseline) / (1 - self.task.baseline)

    @property
    def centred_stderr(self) -> float:
        return self.stderr / (1 - self.task.baseline)

    def __str__(self) -> str:
        """Example: "copa: 61.0% ± 4.9%, centred 0.2200 (n = 100)"."""
        notes = {"cut to the context": self.cut, "with a token across the boundary": self.merged}
        return (
            f"{self.task.label}: {self.accuracy:.1%} ± {self.stderr:.1%}, centred "
            f"{self.centred:.4f} (n = {self.total:,}"
            + "".join(f", {count:,} {what}" for what, count in notes.items() if count)
            + ")"
        )


@dataclass(frozen=True)
class CoreResult:
    """The tasks' scores, and CORE, their mean."""

    tasks: list[TaskScore]

    @property
    def core(self) -> float:
        return fmean(task.centred for task in self.tasks)

    @property
    def stderr(self) -> float:
        """Of CORE, from the tasks' standard errors as if they were independent (HellaSwag is there
        twice, so it is a little more)."""
        return math.hypot(*(task.centred_stderr for task in self.tasks)) / len(self.tasks)

    def record(self) -> dict[str, float]:
        """For metrics.jsonl: core, core_stderr, and five figures of each task."""
        record = {"core": self.core, "core_stderr": self.stderr}
        for found in self.tasks:
            label = found.task.label
            record[f"core/{label}"] = found.centred
            record[f"core_accuracy/{label}"] = found.accuracy
            record[f"core_stderr/{label}"] = found.stderr
            record[f"core_examples/{label}"] = found.total
            record[f"core_baseline/{label}"] = found.task.baseline
        return record


def is_right(task: CoreTask, gold: int, scores: Sequence[Score]) -> bool:
    """Whether the rows' scores make the example's answer right; of equal losses the first wins."""
    if task.kind == "language_modeling":
        return scores[0].is_greedy
    losses = [score.loss for score in scores]
    if not all(map(math.isfinite, losses)):
        raise DataError(
            f"{task.label}: the model's losses are {losses}; expected finite numbers. The weights "
            f"are damaged or the compute dtype overflows: try NANOCHAT_DTYPE=float32"
        )
    return losses.index(min(losses)) == gold


def evaluate_core_task(
    task: CoreTask,
    rows: Sequence[dict],
    model,
    tokenizer,
    *,
    max_per_task: int | None = None,
    tokens_at_once: int = 16384,
    scorer: Scorer = score,
) -> TaskScore:
    """A task's score over all ranks: the examples are dealt out, and every rank gets the result.

    rows: the task's examples in the bundle's order; the solved examples before a question are
    drawn from those that are measured. model: a GPT (faster with weights in compute dtype), or a
    TransformersModel; tokenizer: it has bos and encode_ordinary_batch.

    Raises ConfigError for a max_per_task below 1, DataError for a model that answers NaN.
    """
    if max_per_task is not None and max_per_task < 1:
        raise ConfigError(f"max_per_task is {max_per_task}; choose at least 1, or none for all")
    start = time.perf_counter()
    rows = subsample(rows, max_per_task)
    if not rows:
        raise DataError(f"{task.label}: no examples; nothing can be measured")
    if len(rows) <= task.shots:
        print0(
            f"{task.label}: {len(rows)} examples, so only {len(rows) - 1} of {task.shots} solved "
            f"ones stand before a question"
        )
    rank, world_size = rank_and_world()
    mine = range(rank, len(rows), world_size)
    right, cut, merged = [], 0, 0
    with progress(task.label, len(mine), "examples") as advance:
        for first in range(0, len(mine), EXAMPLES_AT_ONCE):
            some = mine[first : first + EXAMPLES_AT_ONCE]
            examples = make_examples(task, rows, some, tokenizer, model.config.sequence_len)
            scores = scorer(model, examples, tokens_at_once)
            pairs = zip(examples, scores, strict=True)
            right += [is_right(task, example.gold, found) for example, found in pairs]
            cut += sum(example.cut for example in examples)
            merged += sum(example.merged for example in examples)
            advance(len(some))
    right, cut, merged = gather(right), sum(gather([cut])), sum(gather([merged]))
    seconds = time.perf_counter() - start
    return TaskScore(task, sum(right), len(rows), cut, merged, seconds)


def evaluate_core(bundle: Bundle, model, tokenizer, **options) -> CoreResult:
    """CORE over all tasks of the bundle; a line is printed for each. Options as in
    evaluate_core_task.

    Example: evaluate_core(find_bundle(), model, tokenizer, max_per_task=500).core
    """
    scores = []
    for task in bundle.tasks():
        scores.append(evaluate_core_task(task, bundle.rows(task), model, tokenizer, **options))
        print0(f"{scores[-1]} in {scores[-1].seconds:.1f} s")
    return CoreResult(scores)
