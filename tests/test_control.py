"""The counterfactuals: what they change, and what each kind of model then scores."""

import json
import math

import pytest
import torch

from nanochat.engine import Engine
from nanochat.evaluation.tasks import evaluate_task
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.calculator import evaluate
from nanochat.tokenizer import Tokenizer
from tasks.arc import ARC
from tasks.arithmetic import Arithmetic
from tasks.control import ControlledTool, Shuffled, calls_tool, counterfactual, wrong_results
from tasks.gsm8k import GSM8K
from tasks.identity import Identity
from tasks.task import ChoiceTask, choice_exchange


class YesNo(ChoiceTask):
    """Of four options "yes" is right, which is option B in three rows of four, else A."""

    name = "yes-no"

    def __init__(self, size=8):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if not -self.size <= index < self.size:
            raise IndexError
        options = ["no", "yes", "nay", "never"]
        if index % 4 == 3:
            options = ["yes", "no", "nay", "never"]
        return choice_exchange(f"Number {index}?", options, options.index("yes"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["yes no nay never which is the right choice"], 320)


def chain(tokenizer, links: dict[str, str]) -> GPT:
    """A model whose next token depends on the last one alone, as `links` say.

    A new GPT's blocks add nothing, so that each token's embedding reaches the head as it is.
    """
    shape = {"n_layer": 1, "n_embd": 64, "n_head": 2, "n_kv_head": 2, "head_dim": 32}
    model = GPT(GPTConfig(**shape, vocab_size=320, sequence_len=256))
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        for place, (last, following) in enumerate(links.items()):
            (a,), (b,) = tokenizer.encode(last), tokenizer.encode(following)
            model.model.embed_tokens.weight[a, place] = 1.0
            model.lm_head.weight[b, place] = 1.0
    return model


# ---------------------------------------------------------------- other order


def test_options_change_places_and_the_letter_follows():
    task = YesNo(64)
    shuffled = Shuffled(task)
    assert (len(shuffled), shuffled.name, shuffled.kind) == (64, "yes-no-control", "choice")
    for i in range(64):
        new = shuffled[i]
        assert sorted(new["options"]) == sorted(task[i]["options"])
        assert new["options"]["ABCD".index(new["answer"])] == "yes"
        assert f"- yes={new['answer']}\n" in new["messages"][0]["content"]
        assert new["messages"][1]["content"] == new["answer"] and new == Shuffled(task)[i]
        assert shuffled.evaluate(new, new["answer"]) and shuffled.choices(i) == tuple("ABCD")
    assert shuffled[-1] == shuffled[63]
    orders = {tuple(shuffled[i]["options"]) for i in range(64)}
    assert len(orders) > 12  # of 24
    assert any(Shuffled(task, seed=1)[i] != shuffled[i] for i in range(8))
    with pytest.raises(IndexError):
        shuffled[64]


def test_who_learned_positions_falls_to_chance(tokenizer, tmp_path):
    engine = Engine(chain(tokenizer, {"<|assistant_start|>": "B"}), tokenizer)
    assert evaluate_task("yes-no", YesNo(400), engine).accuracy == 0.75
    path = tmp_path / "answers.jsonl"
    with counterfactual(YesNo(400), None, seed=7) as changed:
        result = evaluate_task("yes-no-control", changed, engine, answers_path=path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["completion"] for line in lines} == {"B"}
    # what is right now is where "yes" stands now
    assert sum("- yes=B\n" in line["prompt"] for line in lines) == sum(result.right)
    assert abs(result.accuracy - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)


class Knows:
    """An engine that finds the line "- yes=X" and gives X the highest logit."""

    class model:
        class config:
            sequence_len = 512

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def next_logits(self, prompts):
        logits = torch.zeros(len(prompts), self.tokenizer.vocab_size)
        for row, prompt in zip(logits, prompts, strict=True):
            row[ord(self.tokenizer.decode(prompt).split("- yes=")[1][0])] = 1.0
        return logits


def test_who_knows_keeps_the_score(tokenizer):
    engine = Knows(tokenizer)
    assert evaluate_task("yes-no", YesNo(50), engine).accuracy == 1
    with counterfactual(YesNo(50), None) as changed:
        assert evaluate_task("yes-no-control", changed, engine).accuracy == 1


def test_real_questions_keep_their_right_option(shared_data):
    task = ARC("ARC-Challenge", "test", shared_data / "hub/datasets/allenai/ai2_arc")
    shuffled = Shuffled(task)
    moved = 0
    for i in range(len(task)):
        old, new = task[i], shuffled[i]
        right_old = old["options"][old["letters"].index(old["answer"])]
        assert right_old == new["options"][new["letters"].index(new["answer"])]
        moved += old["answer"] != new["answer"]
    assert 0.7 < moved / len(task) < 0.8  # 3/4 where there are four options


# ---------------------------------------------------------------- wrong tool


@pytest.mark.parametrize(
    "result, wrong",
    [
        ("42", "43"),
        ("-1", "0"),
        ("0.5", "1.5"),
        ("0.3333333333", "1.3333333333"),
        ("43\n", "44"),
        ("1.5e+20", "7.5E+19"),
        ("1e300", "5E+299"),
        ("error: division by zero", "error: division by zero"),
        ("strawberry", "strawberry"),
        ("nan", "nan"),
        ("", ""),
    ],
)
def test_numbers_become_other_numbers(result, wrong):
    assert wrong_results(lambda call: result)("call") == wrong


def test_which_tasks_call_the_tool(tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    path.write_text(json.dumps({"question": "6*7?", "answer": "<<6*7=42>>42\n#### 42"}) + "\n")
    assert calls_tool(GSM8K("test", path)) and calls_tool(Arithmetic("test", 3))
    assert not calls_tool(Identity("test")) and not calls_tool(YesNo())


class Calls:
    """An engine that calls its tool with the question and says `say` of the result."""

    class model:
        class config:
            sequence_len = 512

    def __init__(self, tokenizer, say):
        self.tokenizer, self.say, self.tool = tokenizer, say, ControlledTool(evaluate)

    def complete(self, prompts, *, num_samples, on_end, **options):
        completions = []
        for prompt in prompts:
            question = self.tokenizer.decode(prompt).split("<|user_start|>")[1].split("<|user")[0]
            call = "".join(c for c in question if c in "0123456789+-*/ ").strip()
            result = self.tool(call)
            text = f"<|python_start|>{call}<|python_end|><|output_start|>{result}<|output_end|>"
            completions.append([text + self.say(call, result)] * num_samples)
            on_end(num_samples)
        return completions


class Sums(Arithmetic):
    """Questions that a plain engine can read."""

    def make(self, rng, index):
        conversation = super().make(rng, index)
        conversation["messages"] = conversation["messages"][-2:]
        call = conversation["messages"][1]["content"][0]["text"]
        conversation["messages"][0]["content"] = f"{call}?"
        return conversation


def test_who_uses_the_tool_falls_and_who_does_not_stays(tokenizer):
    task = Sums("test", 20)
    uses = Calls(tokenizer, lambda call, result: result)
    ignores = Calls(tokenizer, lambda call, result: evaluate(call))
    for engine, score in ((uses, 0.0), (ignores, 1.0)):
        assert evaluate_task("sums", task, engine).accuracy == 1.0
        with counterfactual(task, engine.tool) as changed:
            assert evaluate_task("sums-control", changed, engine).accuracy == score
        assert engine.tool.run is evaluate


def test_the_tool_is_put_back_after_an_error():
    tool = ControlledTool(evaluate)
    with pytest.raises(RuntimeError), counterfactual(Sums("test", 2), tool):
        assert tool("6*7") == "43"
        raise RuntimeError
    assert tool("6*7") == "42"


def test_the_real_engine_asks_the_wrong_tool(tokenizer):
    links = {"<|assistant_start|>": "<|python_start|>", "<|python_start|>": "7"}
    links |= {"7": "<|python_end|>", "<|output_end|>": "<|assistant_end|>"}
    tool = ControlledTool(evaluate)
    engine = Engine(chain(tokenizer, links), tokenizer, tool=tool)
    prompt = [tokenizer.bos, tokenizer.special("<|assistant_start|>")]
    said = "<|python_start|>7<|python_end|><|output_start|>{}<|output_end|>"
    ask = {"max_tokens": 9, "temperature": 0}
    with counterfactual(Sums("test", 2), tool):
        assert engine.complete([prompt], **ask) == [[said.format(8)]]
    assert engine.complete([prompt], **ask) == [[said.format(7)]]


def test_what_has_neither_options_nor_calls_has_no_control(capsys):
    with counterfactual(Identity("test"), ControlledTool(evaluate)) as changed:
        assert changed is None
    with counterfactual(Sums("test", 2), None) as changed:
        assert changed is None
    out = capsys.readouterr().out
    assert "identity: no control, for it has neither options nor a tool" in out
