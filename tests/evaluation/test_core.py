"""The CORE metric: tasks with known answers for a model that prefers given tokens, figures by hand,
the public bundle, ranks, the script."""

import json
import math
import random
import re

import pytest
import torch
from forked import run_ranks
from tiny_checkpoint import save, tiny_tokenizer

from bench.core_eval import score_plainly
from nanochat.common import ConfigError, DataError
from nanochat.evaluation import core
from nanochat.evaluation.core import (
    evaluate_core,
    evaluate_core_task,
    is_right,
    record,
)
from nanochat.evaluation.core_bundle import OPTIONS, Bundle, CoreTask
from nanochat.evaluation.core_loglikelihood import Score, jobs_of, score
from nanochat.evaluation.core_prompts import make_examples, subsample
from nanochat.evaluation.samples import PROMPTS
from nanochat.evaluation.tasks import Result, mean_centred
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.fused_model import FusedModel
from nanochat.tokenizer import Tokenizer
from nanochat.training.log import read_metrics
from scripts import base_eval

PICK = CoreTask("pick", "multiple_choice", "", 0)
SCHEMA = CoreTask("schema", "schema", "", 0)
SAY = CoreTask("say", "language_modeling", "", 0)


@pytest.fixture(params=[score, score_plainly])
def scorer(request, monkeypatch):
    """The test runs with the fast way of scoring and with its slow twin."""
    monkeypatch.setattr(core, "score", request.param)


@pytest.fixture(scope="module")
def byte_tokenizer() -> Tokenizer:
    return Tokenizer.train(["x"], 320)


def model_that_prefers(following: dict[str, dict[str, float]], context=64) -> FusedModel:
    """A model whose next byte depends on the last one alone: following[last][next] is its logit,
    the others are 0. Blocks add nothing, and the embedding tells every id apart."""
    shape = {"n_layer": 1, "n_embd": 320, "n_head": 5, "n_kv_head": 5, "head_dim": 64}
    model = GPT(GPTConfig(**shape, vocab_size=320, sequence_len=context, logit_softcap=None))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(320))
        for last, logits in following.items():
            for following_byte, logit in logits.items():
                # the norm makes sqrt(320) of the embedding's 1
                model.lm_head.weight[ord(following_byte), ord(last)] = logit / math.sqrt(320)
    return FusedModel(model)


def right(task, rows, model, tokenizer):
    return sum(evaluate_core_task(task, rows, model, tokenizer).right)


# ---------------------------------------------------------------- three kinds, by hand


@pytest.mark.usefixtures("scorer")
@pytest.mark.slow
def test_multiple_choice_takes_the_lowest_mean_not_the_lowest_sum(byte_tokenizer):
    model = model_that_prefers({" ": {"a": 2.5, "b": 3}, "b": {"b": 2.6}})
    # After the blank: a costs ln(318 + e^2.5 + e^3) - 2.5 = 3.359, b 2.859; b after b costs
    # ln(319 + e^2.6) - 2.6 = 3.207. Sums 3.359 and 9.272, means 3.359 and 3.091.
    rows = [{"query": "q", "choices": ["a", "bbb"], "gold": gold} for gold in (0, 1)]
    assert right(PICK, rows[:1], model, byte_tokenizer) == 0
    assert right(PICK, rows[1:], model, byte_tokenizer) == 1


@pytest.mark.usefixtures("scorer")
def test_of_equal_choices_the_first_wins(byte_tokenizer):
    flat = model_that_prefers({})
    rows = [{"query": "q", "choices": list("abc"), "gold": gold} for gold in (0, 0, 1, 2)]
    assert right(PICK, rows, flat, byte_tokenizer) == 2


@pytest.mark.usefixtures("scorer")
def test_schema_takes_the_context_that_makes_the_end_likelier(byte_tokenizer):
    # the scored end " z" begins after x or y; a blank is likelier after y
    model = model_that_prefers({"y": {" ": 4}})
    options = {"context_options": ["The x", "The y"], "continuation": "z"}
    assert right(SCHEMA, [options | {"gold": 1}], model, byte_tokenizer) == 1
    assert right(SCHEMA, [options | {"gold": 0}], model, byte_tokenizer) == 0


@pytest.mark.usefixtures("scorer")
def test_language_modelling_wants_every_token_to_be_the_likeliest(byte_tokenizer):
    model = model_that_prefers({":": {" ": 1}, " ": {"a": 1}, "a": {"b": 1}, "b": {"c": 1}})
    for continuation, expected in {"abc": 1, "ab": 1, "abd": 0, "bbc": 0, "acc": 0}.items():
        rows = [{"context": "x: ", "continuation": continuation}]  # the blank goes to " a"
        assert right(SAY, rows, model, byte_tokenizer) == expected, continuation


@pytest.mark.usefixtures("scorer")
def test_prompts_longer_than_the_context(byte_tokenizer):
    model = model_that_prefers({" ": {"a": 2.5, "b": 3}}, context=8)
    row = {"query": "a long question", "choices": ["a", "b", "c"], "gold": 1}
    found = evaluate_core_task(PICK, [row], model, byte_tokenizer)
    assert (sum(found.right), found.cut) == (1, 1) and "1 prompts cut to the context" in str(found)


def test_fewer_rows_than_shots(byte_tokenizer, capsys):
    task = CoreTask("few", "language_modeling", "", 10)
    model = model_that_prefers({" ": {"a": 1}}, context=256)
    rows = [{"context": f"c{n}", "continuation": "a"} for n in range(3)]
    # the blank that " a" begins with is not likelier than byte 0
    found = evaluate_core_task(task, rows, model, byte_tokenizer)
    assert (sum(found.right), found.total) == (0, 3)
    assert "3 examples, so only 2 of 10 solved ones" in capsys.readouterr()[0]


def test_max_per_task_takes_the_first_of_the_shuffled_rows(byte_tokenizer):
    model = model_that_prefers({})
    rows = [{"query": "q", "choices": ["a", "b"], "gold": int(n >= 4)} for n in range(10)]
    for count in (1, 4, 10, 99):
        found = evaluate_core_task(PICK, rows, model, byte_tokenizer, max_per_task=count)
        expected = [1 - row["gold"] for row in subsample(rows)[:count]]
        assert (sum(found.right), found.total) == (sum(expected), len(expected))
    with pytest.raises(ConfigError, match="max_per_task is -1"):
        evaluate_core_task(PICK, rows, model, byte_tokenizer, max_per_task=-1)


@pytest.mark.usefixtures("scorer")
def test_a_model_that_answers_nan_is_an_error(byte_tokenizer):
    model = model_that_prefers({" ": {"a": math.nan}})
    rows = [{"query": "q", "choices": ["a", "b"], "gold": 0}]
    with pytest.raises(DataError, match="expected finite numbers"):
        right(PICK, rows, model, byte_tokenizer)


# ---------------------------------------------------------------- figures


def result(label, baseline, correct, total):
    right = (1,) * correct + (0,) * (total - correct)
    return Result(label, "multiple_choice", right, baseline=baseline)


def test_centred_accuracies_their_errors_and_core_by_hand():
    a, b, below = result("a", 0.25, 40, 100), result("b", 0.0, 20, 100), result("c", 0.62, 50, 100)
    assert math.isclose(a.centred, 0.2) and math.isclose(b.centred, 0.2)
    assert math.isclose(below.centred, -0.12 / 0.38)
    # sqrt(.4 * .6 / 100) = .048990, / .75 = .065320; sqrt(.2 * .8 / 100) = .04
    assert math.isclose(a.stderr, 0.0489898, rel_tol=1e-5)
    assert math.isclose(a.centred_stderr, 0.0653197, rel_tol=1e-5)
    core, stderr = mean_centred([a, b])
    assert math.isclose(core, 0.2)
    assert math.isclose(stderr, math.sqrt(0.0653197**2 + 0.04**2) / 2, rel_tol=1e-5)
    assert str(a) == "a: 40.0% ± 4.9%, centred 0.2000 (n = 100)"
    assert record([a, b]) == {
        "core": core, "core_stderr": stderr,
        "core/a": a.centred, "core_accuracy/a": 0.4, "core_stderr/a": a.stderr,
        "core_examples/a": 100, "core_baseline/a": 0.25,
        "core/b": b.centred, "core_accuracy/b": 0.2, "core_stderr/b": b.stderr,
        "core_examples/b": 100, "core_baseline/b": 0.0,
    }  # fmt: skip


# ---------------------------------------------------------------- the public bundle


def random_answers(task, row, rng):
    """Scores of a model that knows nothing: any option, and no word of a continuation."""
    options = len(row[OPTIONS[task.kind]]) if task.kind in OPTIONS else 1
    return [Score(rng.random(), False) for _ in range(options)]


@pytest.mark.slow
def test_random_answers_score_their_expectation(shared_data):
    bundle, rng = Bundle(shared_data / "eval_bundle.zip"), random.Random(0)
    expected, simulated = [], []
    for task in bundle.tasks():
        rows = bundle.rows(task)
        chance = [1 / len(row[OPTIONS[task.kind]]) if task.kind in OPTIONS else 0 for row in rows]
        accuracy = sum(chance) / len(rows)
        expected.append((accuracy - task.baseline) / (1 - task.baseline))
        correct = sum(is_right(task, r.get("gold", 0), random_answers(task, r, rng)) for r in rows)
        simulated.append(result(task.label, task.baseline, correct, len(rows)))
    score, stderr = mean_centred(simulated)
    above = [t.name for t, e in zip(simulated, expected, strict=True) if e < -0.05]
    assert above == ["commonsense_qa", "boolq"]
    expectation = sum(expected) / 22
    assert math.isclose(expectation, -0.026, abs_tol=1e-4)
    assert abs(score - expectation) < 4 * stderr


@pytest.fixture(scope="module")
def text_tokenizer() -> Tokenizer:
    """Of some hundred words, so that boundaries fall inside and between them."""
    words = "the a of Question Answer Passage choices which what is there river city no yes Q A"
    return Tokenizer.train([f"{words} {words.lower()}: {words.upper()}.\n"] * 4, 512)


def small_random_model(vocab_size, context) -> FusedModel:
    shape = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_kv_head": 2, "head_dim": 16}
    model = GPT(GPTConfig(**shape, vocab_size=vocab_size, sequence_len=context))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return FusedModel(model)


@pytest.mark.parametrize("context", [1024, 200])
@pytest.mark.slow
def test_fast_equals_plain_on_every_task(context, shared_data, text_tokenizer):
    bundle, model = Bundle(shared_data / "eval_bundle.zip"), small_random_model(512, context)
    shared = cut = 0
    for task in bundle.tasks():
        rows = subsample(bundle.rows(task), 3)
        examples = make_examples(task, rows, range(3), text_tokenizer, context)
        fast, plain = score(model, examples, 4096), score_plainly(model, examples)
        for mine, other in zip(fast, plain, strict=True):
            for a, b in zip(mine, other, strict=True):
                assert math.isclose(a.loss, b.loss, rel_tol=1e-4), task.label
                assert a.is_greedy == b.is_greedy, task.label
        shared += sum(jobs_of(0, e.rows, True)[0].shared > 0 for e in examples)
        cut += sum(e.cut for e in examples)
        assert not any(e.merged for e in examples), task.label
    assert shared > 5 and cut > 10


# ---------------------------------------------------------------- ranks, and the script


def write_bundle(folder):
    """Two tasks of seven examples."""
    tasks = [
        {"label": "pick", "dataset_uri": "pick.jsonl", "num_fewshot": [1],
         "icl_task_type": "multiple_choice"},
        {"label": "say", "dataset_uri": "say.jsonl", "num_fewshot": [0],
         "icl_task_type": "language_modeling"},
    ]  # fmt: skip
    pick = [
        {"query": f"the {'cat' * 5 * n}", "choices": ["sat", "ran"], "gold": n % 2}
        for n in range(7)
    ]
    say = [{"context": "the cat " * n, "continuation": "sat"} for n in range(1, 8)]
    (folder / "eval_data").mkdir(parents=True)
    (folder / "core.yaml").write_text(json.dumps({"icl_tasks": tasks}))
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\npick,50\nsay,0\n")
    for name, rows in (("pick", pick), ("say", say)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "eval_data" / f"{name}.jsonl").write_text(lines)
    return folder


def measure(folder):
    return evaluate_core(Bundle(folder), small_random_model(320, 64), tiny_tokenizer())


def rank_main(rank: int, folder) -> None:
    torch.set_num_threads(1)
    address = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.save(measure(folder), folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    alone = measure(folder)
    assert [result.total for result in alone] == [7, 7] and alone[0].cut > 0
    run_ranks(rank_main, 2, folder)
    for rank in range(2):
        assert torch.load(folder / f"rank{rank}.pt", weights_only=False) == alone


@pytest.mark.slow
def test_the_script_writes_figures_and_samples(tmp_path, capsys):
    path = save()
    options = {"eval_tokens": 0, "core": True, "bundle": str(write_bundle(tmp_path / "bundle"))}
    config = base_eval.Config(**options, max_per_task=3, sample_tokens=4, device_type="cpu")
    base_eval.main(config)
    (record,) = read_metrics(path.parent)
    assert {"stage": "base", "step": 1}.items() <= record.items()
    assert record["core_examples/pick"] == 3 and record["core_stderr/say"] >= 0
    assert math.isclose(record["core"], (record["core/pick"] + record["core/say"]) / 2)
    samples = json.loads((path.parent / "samples-step1.json").read_text())
    assert [s["prompt"] for s in samples] == [*PROMPTS, "", "", ""]
    assert all(isinstance(s["completion"], str) for s in samples)
    assert "CORE: " in capsys.readouterr()[0]


@pytest.mark.slow
def test_the_script_measures_a_hugging_face_folder_alike(tmp_path, base_dir, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    path = save()
    options = {"core": True, "bundle": str(write_bundle(tmp_path / "bundle")), "eval_tokens": 0}
    options |= {"sample_tokens": 4, "device_type": "cpu"}
    base_eval.main(base_eval.Config(**options))
    base_eval.main(base_eval.Config(**options, hf_path=str(path)))
    theirs = base_dir / "hf_evaluations" / path.name
    (mine,), (other,) = read_metrics(path.parent), read_metrics(theirs)
    for figures in (mine, other):
        figures.pop("time")
    assert other.pop("stage") == "hf" and mine.pop("stage") == "base"
    assert other.pop("step") == 0 and mine.pop("step") == 1
    assert mine == other
    samples = [(path.parent / "samples-step1.json"), (theirs / "samples-step0.json")]
    texts = [re.sub(r"<\|unused \d+\|>", "", sample.read_text()) for sample in samples]
    assert texts[0] == texts[1]  # ids that nothing uses have a name in their tokenizer alone
