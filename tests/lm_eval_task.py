"""lm-evaluation-harness on questions of a test's own, which are asked for their exact answers."""

import json
from pathlib import Path

import pytest

TASK = """
task: answers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: {length}, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def exact_match(folder: Path, answers: dict[str, str], length: int, **evaluate) -> float:
    """The share of questions that get the answer expected, of up to `length` tokens; skips without
    the package. folder: for the files; evaluate: which model, for its simple_evaluate."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval")
    from lm_eval.tasks import TaskManager

    rows = [json.dumps({"question": q, "answer": a}) for q, a in answers.items()]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    (folder / "answers.yaml").write_text(TASK.format(file=folder / "rows.jsonl", length=length))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        found = lm_eval.simple_evaluate(
            **evaluate, tasks=["answers"], task_manager=manager, apply_chat_template=True
        )
    return found["results"]["answers"]["exact_match,none"]
