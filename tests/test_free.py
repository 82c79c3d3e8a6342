"""The free questions: whole, judged as a reader would, and in no training data."""

import json
from collections import Counter

import pytest

from nanochat.conversation import validate
from tasks.catalog import make_task
from tasks.free import Free, Talk
from tasks.task import FREE_QUESTIONS, asks_freely, gold_completion


@pytest.mark.parametrize("number", ["", "_2", "_3"])
def test_every_question_is_asked_once_and_its_own_answer_is_right(number):
    task = Free(path=FREE_QUESTIONS.with_name(f"free_questions{number}.jsonl"))
    assert len(task) >= 200
    questions = [str(task[i]["messages"][:-1]) for i in range(len(task))]
    assert max(Counter(questions).values()) == 1
    for i in range(len(task)):
        conversation = task[i]
        assert task.evaluate(conversation, gold_completion(conversation)), conversation
        assert not task.evaluate(conversation, "Blue."), conversation


@pytest.mark.parametrize(
    "kind, expect, completion, right",
    [
        ("capital", ["Oslo"], "The capital is oslo.<|assistant_end|>", True),
        ("capital", ["Oslo"], "Osloer", False),
        ("spell", ["t e a"], "t-e-a", True),
        ("spell", ["t e a"], "t e a m", False),
        ("count", ["2"], "<|python_start|>2<|python_end|>It has 2.", True),
        ("count", ["2"], "<|python_start|>2<|python_end|>It has 3.", False),
        ("arithmetic", ["1200"], "That is 1,200.", True),
        ("arithmetic", ["12"], "120", False),
    ],
)
def test_answers_are_judged_by_their_kind(kind, expect, completion, right):
    assert Free().evaluate({"kind": kind, "expect": expect}, completion) == right


def test_a_question_that_goes_on_has_the_turns_before(tmp_path):
    file = tmp_path / "mine.jsonl"
    row = {"kind": "capital", "before": ["Hi", "Hello"], "question": "Oslo?", "expect": ["yes"]}
    file.write_text(json.dumps(row) + "\n")
    (conversation,) = Free(path=file)
    assert [m["content"] for m in conversation["messages"]] == ["Hi", "Hello", "Oslo?", "yes"]


def test_talk_asks_the_free_questions_after_others():
    free, talk, turns = Free(), Talk(), Counter()
    assert len(talk) == len(free)
    for i in range(len(talk)):
        asked, alone = talk[i], free[i]
        turns[(len(asked["messages"]) - len(alone["messages"])) // 2] += 1
        assert asked["messages"][-len(alone["messages"]) :] == alone["messages"]
        assert talk.evaluate(asked, gold_completion(asked))
        validate(asked, "talk")
    assert min(turns) >= 1 and len(turns) >= 3
    assert talk[3] == Talk()[3]


def test_a_free_question_is_recognised_however_it_is_written():
    question = {"role": "user", "content": "WHATS the capital of poland??"}
    assert asks_freely({"messages": [question]})
    assert not asks_freely({"messages": [{**question, "content": "hi"}]})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["facts", "identity", "unknown", "spelling", "arithmetic"])
def test_no_free_question_is_trained_on(name):
    task = make_task(name, "train")
    assert not [c for c in map(task.__getitem__, range(len(task))) if asks_freely(c)]
