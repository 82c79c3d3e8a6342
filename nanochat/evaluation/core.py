"""The CORE metric of a base model: 22 tasks, answered by likelihood (DCLM, arXiv:2406.11794).

Multiple choice: the choice with the lowest mean loss over its own tokens. Schema: the contexts
differ, the continuation is scored. Language modelling: every token of the continuation is the
likeliest one. CORE is the mean of the tasks' centred accuracies: 0 for chance, 1 for no mistake.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from nanochat.common import ConfigError, DataError, gather, print0, progress, rank_and_world
from nanochat.evaluation.core_bundle import Bundle, CoreTask
from nanochat.evaluation.core_loglikelihood import Score, score
from nanochat.evaluation.core_prompts import make_examples, subsample

EXAMPLES_AT_ONCE = 1024  # tokenized together and sorted by length


@dataclass(frozen=True)
class TaskScore:
    """How a task went: `correct` of `total` examples."""

    task: CoreTask
    correct: int
    total: int
    cut: int = 0  # examples that lost their oldest tokens because the context is short
    merged: int = 0  # where a token reaches from the context into the continuation

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def stderr(self) -> float:
        """Of the accuracy: sqrt(p (1 - p) / n)."""
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
        cut = f", {self.cut:,} cut to the context" if self.cut else ""
        merged = f", {self.merged:,} with a token across the boundary" if self.merged else ""
        return (
            f"{self.task.label}: {self.accuracy:.1%} ± {self.stderr:.1%}, centred "
            f"{self.centred:.4f} (n = {self.total:,}{cut}{merged})"
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
        """Of CORE, as if the tasks were independent; HellaSwag is among them twice, so the true
        error is a little larger."""
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
    """Whether the rows' scores give the right answer; of equal losses the first wins."""
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
) -> TaskScore:
    """A task's score. The examples are dealt out to all ranks, and every rank gets the result.

    rows: the task's examples in the bundle's order; the solved examples before a question are
    drawn from the rows that are measured. model: an InferenceModel or a TransformersModel.

    Raises ConfigError for a max_per_task below 1, DataError for losses that are NaN.
    """
    if max_per_task is not None and max_per_task < 1:
        raise ConfigError(f"max_per_task is {max_per_task}; choose at least 1, or none for all")
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
    outcomes: list[tuple[bool, bool, bool]] = []  # of each example: right, cut, merged
    with progress(task.label, len(mine), "examples") as advance:
        for first in range(0, len(mine), EXAMPLES_AT_ONCE):
            some = mine[first : first + EXAMPLES_AT_ONCE]
            examples = make_examples(task, rows, some, tokenizer, model.config.sequence_len)
            scores = score(model, examples, tokens_at_once)
            for example, found in zip(examples, scores, strict=True):
                outcomes.append((is_right(task, example.gold, found), example.cut, example.merged))
            advance(len(some))
    correct, cut, merged = map(sum, zip(*gather(outcomes), strict=True))
    return TaskScore(task, correct, len(rows), cut, merged)


def evaluate_core(bundle: Bundle, model, tokenizer, **options) -> CoreResult:
    """CORE over all tasks of the bundle, with a printed line for each; options of
    evaluate_core_task.

    Example: evaluate_core(find_bundle(), engine.fast, tokenizer, max_per_task=500).core
    """
    scores = []
    for task in bundle.tasks():
        start = time.perf_counter()
        scores.append(evaluate_core_task(task, bundle.rows(task), model, tokenizer, **options))
        print0(f"{scores[-1]} in {time.perf_counter() - start:.1f} s")
    return CoreResult(scores)
