"""The CORE metric of a base model: 22 tasks, answered by likelihood (DCLM, arXiv:2406.11794).

Multiple choice: the choice with the lowest mean loss over its own tokens. Schema: the contexts
differ, the continuation is scored. Language modelling: every token of the continuation is the
likeliest one. CORE is the mean of the tasks' centred accuracies: 0 for chance, 1 for no mistake.
"""

import math
import time
from collections.abc import Sequence

from nanochat.common import ConfigError, DataError, gather, print0, progress, rank_and_world
from nanochat.evaluation.core_bundle import Bundle, CoreTask
from nanochat.evaluation.core_loglikelihood import Score, score
from nanochat.evaluation.core_prompts import make_examples, subsample
from nanochat.evaluation.tasks import Result, mean_centred

EXAMPLES_AT_ONCE = 1024  # tokenized together and sorted by length


def record(results: Sequence[Result]) -> dict[str, float]:
    """For metrics.jsonl: core, core_stderr, and five figures of each task."""
    figures = dict(zip(("core", "core_stderr"), mean_centred(results), strict=True))
    for result in results:
        found = {"core": result.centred, "core_accuracy": result.accuracy}
        found |= {"core_stderr": result.stderr, "core_examples": result.total}
        found |= {"core_baseline": result.baseline}
        figures |= {f"{key}/{result.name}": value for key, value in found.items()}
    return figures


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
) -> Result:
    """A task's Result. The examples are dealt out to all ranks, and every rank gets the result.

    rows: the task's examples in the bundle's order; the solved examples before a question are
    drawn from those that are measured. model: a FusedModel or a TransformersModel.
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
    right, cut, merged = zip(*gather(outcomes), strict=True)
    figures = {"baseline": task.baseline, "cut": sum(cut), "merged": sum(merged)}
    return Result(task.label, task.kind, right, **figures)


def evaluate_core(bundle: Bundle, model, tokenizer, **options) -> list[Result]:
    """The Results of the bundle's tasks, each printed; options of evaluate_core_task. CORE itself
    is their `mean_centred`.

    Example: evaluate_core(find_bundle(), engine.fused, tokenizer, max_per_task=500)
    """
    results = []
    for task in bundle.tasks():
        start = time.perf_counter()
        results.append(evaluate_core_task(task, bundle.rows(task), model, tokenizer, **options))
        print0(f"{results[-1]} in {time.perf_counter() - start:.1f} s")
    return results
