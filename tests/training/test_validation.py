"""Bits per byte and accuracies, by hand and against slow twins."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from nanochat import loss
from nanochat.common import DataError
from nanochat.dataloader import Batch
from nanochat.engine import Engine
from nanochat.evaluation.tasks import (
    CHATCORE,
    Result,
    chatcore,
    evaluate_task,
    missing_of_chatcore,
    pass_at_k,
)
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import Tokenizer
from nanochat.training.validation import bits_per_byte, measure_rows
from tasks.task import Task


def tiny_batch(inputs, targets) -> Batch:
    return Batch(torch.tensor(inputs), torch.tensor(targets))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["low lower lowest slow slower slowest"], 320)


def tiny_model(sequence_len: int = 64) -> GPT:
    shape = {"n_layer": 1, "n_embd": 64, "n_head": 2, "n_kv_head": 2, "head_dim": 32}
    return GPT(GPTConfig(**shape, vocab_size=320, sequence_len=sequence_len))


def flat_model() -> GPT:
    """Every token has probability 1/320."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    return model


def random_model() -> GPT:
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


# ---------------------------------------------------------------- bits per byte


def test_bits_per_byte_of_a_flat_model_by_hand():
    token_bytes = torch.full((320,), 4)
    token_bytes[7], token_bytes[319] = 1, 0
    batch = tiny_batch([[1, 2, 3], [4, 5, 6]], [[5, 7, -1], [319, 6, 7]])
    # counted: 5, 7, 6, 7 = 4 tokens of log2(320) bits; 4 + 1 + 4 + 1 = 10 bytes
    bpb, num_bytes = bits_per_byte(flat_model(), [batch], 1, token_bytes)
    assert num_bytes == 10 and math.isclose(bpb, 4 * math.log2(320) / 10, rel_tol=1e-6)


@pytest.mark.parametrize("at_once", [1, 320 * 3, 2**25])
def test_bits_per_byte_equals_the_slow_twin_in_chunks_of_any_size(monkeypatch, at_once):
    monkeypatch.setattr(loss, "CPU_CHUNK_LOGITS", at_once)
    model, token_bytes = random_model(), torch.randint(0, 5, (320,))
    inputs, targets = torch.randint(0, 320, (2, 3, 4, 9))
    targets[:, 1, 2] = -1
    nats = num_bytes = 0
    for x, y in zip(inputs.flatten(0, 1), targets.flatten(0, 1), strict=True):
        log_p = model(x[None])[0].log_softmax(-1)
        for t, target in enumerate(y.tolist()):
            if target >= 0 and token_bytes[target] > 0:
                nats -= log_p[t, target].item()
                num_bytes += token_bytes[target].item()
    batches = [tiny_batch(x.tolist(), y.tolist()) for x, y in zip(inputs, targets, strict=True)]
    bpb, counted = bits_per_byte(model, iter(batches), 3, token_bytes.numpy())
    assert counted == num_bytes
    assert math.isclose(bpb, nats / math.log(2) / num_bytes, rel_tol=1e-5)


def test_only_num_batches_are_taken():
    endless = iter(lambda: tiny_batch([[1, 2]], [[2, 3]]), None)
    assert bits_per_byte(flat_model(), endless, 5, torch.ones(320))[1] == 10
    assert next(endless)


def test_no_text_to_measure_is_an_error():
    with pytest.raises(DataError, match="no text to measure"):
        bits_per_byte(flat_model(), [tiny_batch([[1]], [[-1]])], 1, torch.ones(320))


class Rows:
    """Row i predicts i + 1 from i; one token a row."""

    fixed_length, max_length = True, 1

    def __init__(self, size):
        self.size, self.asked = size, []

    def __len__(self):
        return self.size

    def row(self, index):
        self.asked.append(index)
        return np.array([index]), np.array([index + 1])


@pytest.mark.parametrize("num_tokens, measured", [(100, 10), (4, 4), (1, 1)])
def test_rows_are_measured_once_at_most(tokenizer, num_tokens, measured):
    rows = Rows(10)
    _, num_bytes = measure_rows(flat_model(), tokenizer, rows, num_tokens, 2)
    assert sorted(rows.asked) == list(range(measured))
    assert num_bytes == measured  # ids below 256 are one byte each


# ---------------------------------------------------------------- tasks


class Letters(Task):
    """Multiple choice: example i asks with i + 1 letters x; B is always right."""

    kind = "choice"

    def __init__(self, letters="ABC", size=7):
        self.letters, self.size = letters, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        messages = [
            {"role": "user", "content": "x" * (index + 1)},
            {"role": "assistant", "content": "B"},
        ]
        return {"messages": messages, "letters": list(self.letters), "index": index}

    def evaluate(self, conversation, completion):
        return completion == "B"


class Free(Letters):
    """Generation: example i is right when the completion is what the naive generator says."""

    kind = "generate"

    def __init__(self, model, tokenizer, size=5, max_tokens=6):
        super().__init__(size=size)
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens

    def expected(self, index):
        prompt = self.tokenizer.encode(
            f"<|bos|><|user_start|>{'x' * (index + 1)}<|user_end|><|assistant_start|>"
        )
        generated = self.model.generate(prompt, self.max_tokens, temperature=0)
        return self.tokenizer.decode(list(generated))

    def evaluate(self, conversation, completion):
        index = conversation["index"]
        return index != 2 and completion == self.expected(index)  # example 2 counts as wrong


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_choice_takes_the_likeliest_letter(tokenizer, batch_size, tmp_path):
    model = random_model()
    task = Letters()
    path = tmp_path / "answers.jsonl"
    result = evaluate_task(
        "letters", task, Engine(model, tokenizer), batch_size=batch_size, answers_path=path
    )
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["index"] for line in lines] == list(range(7))
    for line in lines:
        logits = model(torch.tensor([tokenizer.encode(line["prompt"])]))[0, -1]
        assert line["completion"] == max("ABC", key=lambda letter: logits[ord(letter)])
        assert line["right"] == (line["completion"] == "B")
    assert sum(result.right) == sum(line["right"] for line in lines) and result.total == 7


def test_letters_outside_the_choices_do_not_win(tokenizer):
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[ord("Z")] = 1.0
        model.lm_head.weight[ord("B")] = 0.5
    result = evaluate_task("letters", Letters(), Engine(model, tokenizer))
    assert (sum(result.right), result.total, result.kind) == (7, 7, "choice")


def test_a_choice_of_several_tokens_is_an_error(tokenizer):
    with pytest.raises(DataError, match="'xyz' is 3 tokens"):
        evaluate_task("letters", Letters(["xyz", "B"]), Engine(random_model(), tokenizer))


def test_generation_is_greedy_and_judged_by_the_task(tokenizer):
    model = random_model()
    model.stop_ids = (tokenizer.special("<|assistant_end|>"), tokenizer.bos)
    result = evaluate_task(
        "free", Free(model, tokenizer), Engine(model, tokenizer), max_tokens=6, batch_size=2
    )
    assert (sum(result.right), result.total, result.kind) == (4, 5, "generate")


def test_limit_draws_a_subset_by_seed(tokenizer, tmp_path):
    engine = Engine(random_model(), tokenizer)

    def chosen(seed):
        path = tmp_path / "answers.jsonl"
        evaluate_task("letters", Letters(size=40), engine, limit=4, seed=seed, answers_path=path)
        return [json.loads(line)["index"] for line in path.read_text().splitlines()]

    assert chosen(1) == chosen(1) != chosen(2)
    assert len(set(chosen(1))) == 4
    for nothing in (0, -1):
        with pytest.raises(DataError, match="no examples"):
            evaluate_task("letters", Letters(), engine, limit=nothing)


def test_a_prompt_longer_than_the_context_loses_its_beginning_and_is_counted(tokenizer, tmp_path):
    path = tmp_path / "answers.jsonl"
    engine = Engine(tiny_model(sequence_len=8), tokenizer)
    result = evaluate_task("letters", Letters(size=6), engine, answers_path=path)
    # <|bos|> <|user_start|> x... <|user_end|> <|assistant_start|> of 1..6 x has 5..10 ids; 7 fit
    assert result.cut == 3 and "3 prompts cut" in str(result)
    last = json.loads(path.read_text().splitlines()[-1])
    assert last["prompt"] == "xxxxx<|user_end|><|assistant_start|>"


def measure_on_rank(folder: str) -> tuple:
    tokenizer = Tokenizer.load(folder)
    torch.manual_seed(0)
    engine = Engine(random_model(), tokenizer)
    result = evaluate_task("letters", Letters(), engine, answers_path=f"{folder}/two.jsonl")
    rank = torch.distributed.get_rank()
    batch = tiny_batch([[rank]], [[rank + 1]])
    token_bytes = torch.tensor([1, 1, 3]).repeat(107)[:320]
    return result, bits_per_byte(flat_model(), [batch], 1, token_bytes)


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(tokenizer, tmp_path, rank_processes):
    tokenizer.save(tmp_path)
    torch.manual_seed(0)
    alone = evaluate_task(
        "letters", Letters(), Engine(random_model(), tokenizer), answers_path=tmp_path / "one.jsonl"
    )
    job = measure_on_rank, 2, 2, {"folder": str(tmp_path)}
    for result, (bpb, num_bytes) in rank_processes.run({"measure": job}, tmp_path)["measure"]:
        assert result == alone
        # rank 0 measures token 1 of 1 byte, rank 1 token 2 of 3 bytes: 2 log2(320) bits / 4 bytes
        assert num_bytes == 4 and math.isclose(bpb, 2 * math.log2(320) / 4, rel_tol=1e-6)
    assert (tmp_path / "two.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()


# ---------------------------------------------------------------- figures


def test_accuracy_and_standard_error_by_hand():
    result = Result("x", "choice", right=(1,) * 80 + (0,) * 20)
    assert result.accuracy == 0.8 and math.isclose(result.stderr, 0.04)
    assert str(result) == "x: 80.0% ± 4.0% (n = 100)"


def test_pass_at_k_is_the_share_of_draws_with_a_right_one():
    assert pass_at_k(4, 1, 2) == 0.5 and pass_at_k(5, 0, 3) == 0 and pass_at_k(5, 5, 1) == 1
    for n, correct, k in itertools.product(range(1, 6), range(6), range(1, 6)):
        if correct <= n and k <= n:
            draws = list(itertools.combinations(range(n), k))
            share = sum(any(i < correct for i in draw) for draw in draws) / len(draws)
            assert math.isclose(pass_at_k(n, correct, k), share, abs_tol=1e-12)


def test_pass_at_k_of_a_task_and_its_standard_error_by_hand():
    result = Result("x", "generate", right=(0, 2, 4), num_samples=4, temperature=0.8)
    # pass@1 of the examples: 0, 1/2, 1; pass@2: 0, 1 - 1/6, 1; pass@4: 0, 1, 1
    assert result.ks() == [1, 4] and result.accuracy == 0.5
    assert math.isclose(result.stderr, math.sqrt((0.25 + 0 + 0.25) / 3) / math.sqrt(3))
    assert math.isclose(result.pass_at(2)[0], 11 / 18)
    share, error = result.pass_at(4)
    assert math.isclose(share, 2 / 3) and math.isclose(error, math.sqrt(2 / 9 / 3))
    assert str(result) == "x: 50.0% ± 23.6% (n = 3 x 4), pass@4 66.7% ± 27.2%"
    assert result.figures() == {
        "accuracy/x": 0.5,
        "stderr/x": result.stderr,
        "examples/x": 3,
        "pass@1/x": 0.5,
        "stderr_pass@1/x": result.stderr,
        "pass@4/x": share,
        "stderr_pass@4/x": error,
    }


def five(*accuracies, n=10_000) -> list[Result]:
    """ChatCORE's tasks with these accuracies over n examples."""
    baselines = (0.25, 0.25, 0.25, 0.0, 0.0)
    rights = [round(accuracy * n) for accuracy in accuracies]
    return [
        Result(name, "generate", (1,) * right + (0,) * (n - right), baseline=baseline)
        for name, right, baseline in zip(CHATCORE, rights, baselines, strict=True)
    ]


def test_chatcore_of_the_published_figures():
    """ARC-Easy, ARC-Challenge, MMLU, GSM8K, HumanEval of the nanochat model card, mid and SFT."""
    assert round(chatcore(five(0.3561, 0.2875, 0.3111, 0.0250, 0.0671))[0], 4) == 0.0730
    assert round(chatcore(five(0.3876, 0.2807, 0.3151, 0.0455, 0.0854))[0], 4) == 0.0884


def test_chatcore_and_its_standard_error_by_hand():
    results = five(0.25, 0.25, 0.25, 0.5, 0, n=4)
    # standard errors of the centred scores: sqrt(3/16 / 4) / (3/4) = sqrt(1/12) thrice, 1/4, 0
    value, error = chatcore(results[::-1])
    assert math.isclose(value, 0.5 / 5) and math.isclose(error, math.sqrt(3 / 12 + 1 / 16) / 5)
    assert [r.centred for r in five(1, 0.25, 0, 1, 0, n=4)] == [1, 0, -1 / 3, 1, 0]
    assert Result("facts", "generate", (1,)).centred is None


def test_trained_and_new_phrasings_have_figures_of_their_own():
    result = Result("facts", "generate", (1, 0, 1, 1), phrasings=("trained", "new", "new", None))
    found = result.figures()
    names = ("facts", "facts (trained phrasings)", "facts (new phrasings)")
    assert [found[f"accuracy/{name}"] for name in names] == [0.75, 1.0, 0.5]
    assert [found[f"examples/{name}"] for name in names] == [4, 1, 2]
    unknown = Result("mmlu", "choice", (1, 0), phrasings=(None, None)).figures()
    assert unknown.keys() == {"accuracy/mmlu", "stderr/mmlu", "examples/mmlu"}


def test_there_is_no_chatcore_without_greedy_answers_to_all_five():
    results = five(0, 0, 0, 0, 0, n=1)
    assert missing_of_chatcore(results) == []
    assert missing_of_chatcore(results[1:]) == ["arc-easy"]
    warm = Result("gsm8k", "generate", (1,), temperature=0.5, baseline=0.0)
    assert missing_of_chatcore([*results[:3], warm]) == ["gsm8k", "humaneval"]
