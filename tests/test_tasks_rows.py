"""Rows of data sets as people have them: taken, or refused with file, row and reason; mixtures."""

import json
import random

import pytest

from nanochat.common import ConfigError, DataError
from tasks.arc import ARC
from tasks.catalog import (
    as_bytes,
    fingerprint,
    make_task,
    mixture,
    split_name,
    split_part,
    task_or_why_not,
)
from tasks.free import Free
from tasks.gsm8k import GSM8K
from tasks.humaneval import COLUMNS, HumanEval
from tasks.identity import Identity
from tasks.mmlu import MMLU
from tasks.smoltalk import SmolTalk
from tasks.task import Task, exchange


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


GOOD = {
    "mmlu": {"question": "2+2?", "subject": "maths", "choices": list("1248"), "answer": 2},
    "arc": {
        "question": "Hot?",
        "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    "gsm8k": {"question": "How many?", "answer": "6*7 is <<6*7=42>>42\n#### 42"},
    "humaneval": dict.fromkeys(COLUMNS, "def f(): pass"),
    "free": {"kind": "fact", "question": "Who?", "expect": ["Ada"]},
    "identity": {"prompts": ["Name?"], "answers": ["I am Ada."], "expect": ["Ada"]},
    "smoltalk": exchange("Hi", "Hello!"),
}
MAKE = {
    "mmlu": lambda path: MMLU("test", path),
    "arc": lambda path: ARC("ARC-Easy", "test", path),
    "gsm8k": lambda path: GSM8K("test", path),
    "humaneval": HumanEval,
    "free": lambda path: Free("test", path),
    "identity": lambda path: Identity("train", 3, path),
    "smoltalk": SmolTalk,
}


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("mmlu", {"answer": 4}, "'answer' is 4, expected a number from 0 to 3"),
        ("mmlu", {"answer": 1.5}, "'answer' is 1.5, expected a number"),
        ("mmlu", {"answer": "C"}, "'answer' is 'C', expected a number"),
        ("mmlu", {"answer": True}, "'answer' is True, expected a number"),
        ("mmlu", {"answer": None}, "'answer' is None, expected a number"),
        ("mmlu", {"answer": [1]}, r"'answer' is \[1\], expected a number"),
        ("mmlu", {"answer": float("nan")}, "'answer' is nan, expected a number"),
        ("mmlu", {"choices": ["a", "b", "c"]}, "'choices' is .*, expected four texts"),
        ("mmlu", {"choices": "abcd"}, "'choices' is 'abcd', expected a list of texts"),
        ("mmlu", {"choices": [1, 2, 3, 4]}, "'choices' is .*, expected a text"),
        ("mmlu", {"question": None}, "'question' is None, expected a text"),
        ("mmlu", {"question": " "}, "'question' is ' ', expected a text"),
        ("mmlu", {"question": ...}, "found columns subject, choices, answer, expected question"),
        ("mmlu", {"train": {"question": "?"}}, "found columns question, expected question, cho"),
        ("arc", {"choices": {"text": ["a", "b"], "label": list("ABC")}}, "expected as many texts"),
        ("arc", {"choices": {"text": ["a"] * 27, "label": ["x"] * 27}}, "expected as many texts"),
        ("arc", {"choices": {"text": [], "label": []}}, "expected a list of texts"),
        ("arc", {"choices": {"text": ["a", None], "label": ["A", "B"]}}, "expected a text"),
        ("arc", {"choices": ["a", "b"]}, "expected text and label, two lists"),
        ("arc", {"choices": None}, "'choices' is None, expected text and label"),
        ("arc", {"answerKey": "C"}, "'answerKey' is 'C', expected one of the labels"),
        ("arc", {"answerKey": 1}, "'answerKey' is 1, expected a text"),
        ("arc", {"question": ...}, "found columns choices, answerKey, expected question"),
        ("gsm8k", {"answer": "42"}, "'answer' is '42', expected a solution that ends in"),
        ("gsm8k", {"answer": "#### many"}, "expected a solution that ends in"),
        ("gsm8k", {"answer": 42}, "'answer' is 42, expected a solution"),
        ("gsm8k", {"question": ...}, "found columns answer, expected question, answer"),
        ("humaneval", {"test": None}, "'test' is None, expected a text"),
        ("humaneval", {"prompt": ...}, "found columns .*, expected task_id, prompt"),
        ("free", {"expect": "Ada"}, "'expect' is 'Ada', expected a list of texts"),
        ("free", {"before": ["Who?"]}, "'before' is .*, expected a question and its answer"),
        ("free", {"kind": ...}, "found columns .*, expected kind, question, expect"),
        ("identity", {"expect": []}, r"'expect' is \[\], expected a list of texts"),
        ("identity", {"slots": []}, r"'slots' is \[\], expected slots with"),
        ("identity", {"slots": {"x": "y"}}, "'slots' is .*, expected a list of texts"),
        ("identity", {"answers": ...}, "found columns .*, expected prompts"),
        ("smoltalk", {"messages": None}, r'expected \{"messages"'),
        ("smoltalk", {"messages": ...}, r'expected \{"messages"'),
        ("smoltalk", {"messages": [{"role": "user"}]}, "message 1 of 1: found content of type"),
        ("smoltalk", {"messages": [{"from": "human", "value": "Hi"}]}, "found role None"),
    ],
)  # fmt: skip
def test_a_malformed_row_is_named(tmp_path, task, change, message):
    bad = {key: value for key, value in (GOOD[task] | change).items() if value is not ...}
    path = write(tmp_path / "rows.jsonl", [GOOD[task], GOOD[task], bad])
    with pytest.raises(DataError, match=f"rows.jsonl:3: .*{message}"):
        MAKE[task](path)


@pytest.mark.parametrize("task", GOOD)
def test_a_file_without_rows_is_named(tmp_path, task):
    (tmp_path / "rows.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="rows.jsonl has no rows"):
        MAKE[task](tmp_path / "rows.jsonl")


def test_numbers_that_a_table_made_floats(tmp_path):
    path = write(tmp_path / "rows.jsonl", [GOOD["mmlu"] | {"answer": 1.0, "subject": None}])
    assert MMLU("test", path)[0]["answer"] == "B"


@pytest.mark.parametrize("task", ["mmlu", "arc-easy", "gsm8k", "smoltalk"])
def test_malformed_rows_can_be_left_out(tmp_path, task, capsys):
    good = GOOD[task.removesuffix("-easy")]
    path = write(tmp_path / "train.jsonl", [*[good] * 97, {}, {}, [3]])
    with pytest.raises(DataError, match="train.jsonl:98: .*--max-malformed=0$"):
        make_task(task, "train", str(path), max_malformed=0.0)
    assert len(make_task(task, "train", str(path), max_malformed=0.03)) == 97
    printed = capsys.readouterr().out
    assert printed.count("left out: ") == 4 and "3 malformed rows left out: 2 not" in printed
    with pytest.raises(DataError, match="3 of the 100 rows so far"):
        mixture(f"{task}@{path}", "train", 1, max_malformed=0.02)


def test_copies_in_a_folder_of_chats_are_left_out(tmp_path, capsys):
    write(tmp_path / "train.jsonl", [GOOD["smoltalk"]])
    write(tmp_path / ".train.jsonl", [GOOD["smoltalk"]])
    assert len(SmolTalk(tmp_path)) == 1
    assert "1 hidden" in capsys.readouterr().out


# ---------------------------------------------------------------- mixtures


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gsm8k", ("gsm8k", None, None)),
        (" gsm8k:2 ", ("gsm8k", None, "2")),
        ("gsm8k:.5", ("gsm8k", None, ".5")),
        ("smoltalk@~/chats.jsonl", ("smoltalk", "~/chats.jsonl", None)),
        ("smoltalk@./a b/c.jsonl:0.5", ("smoltalk", "./a b/c.jsonl", "0.5")),
        ("smoltalk@owner/name:3", ("smoltalk", "owner/name", "3")),
        ('smoltalk@"/a:b,c.jsonl":2', ("smoltalk", "/a:b,c.jsonl", "2")),
        ("smoltalk@'C:/x, y'", ("smoltalk", "C:/x, y", None)),
        ("smoltalk@/o'brien/x", ("smoltalk", "/o'brien/x", None)),
        ('smoltalk@"o\'brien,x"', ("smoltalk", "o'brien,x", None)),
        ("smoltalk@/me@home/x", ("smoltalk", "/me@home/x", None)),
        ("smoltalk@数据/x.jsonl", ("smoltalk", "数据/x.jsonl", None)),
    ],
)
def test_a_part_of_a_mixture(text, expected):
    assert split_part(text) == expected


@pytest.mark.parametrize(
    "text", ["a@b:c", "a@b:1:2", "a:", "a@", "@b", "a:-1", "a:1e3", "a@'b", ""]
)
def test_a_part_of_another_form(text):
    with pytest.raises(ConfigError, match="is not of the form .* in quotes"):
        split_part(text)


def test_epochs_of_a_single_task_are_refused():
    with pytest.raises(ConfigError, match="'gsm8k:2': a task by itself has no epochs"):
        split_name("gsm8k:2")
    with pytest.raises(ConfigError, match="a task by itself has no epochs"):
        task_or_why_not("gsm8k:2", "cpu", None)


def test_mixture_of_quoted_paths_and_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a:b, c.jsonl", [GOOD["smoltalk"]] * 3)
    write(tmp_path / "d.jsonl", [GOOD["smoltalk"]])
    write(tmp_path / "me.jsonl", [GOOD["identity"]])
    text = f"smoltalk@'{tmp_path}/a:b, c.jsonl':2, smoltalk@~/d.jsonl:4,identity@~/me.jsonl:0.001,"
    assert mixture(text, "train", 1).report() == [("a:b, c", 6), ("d", 4), ("identity", 6)]


def test_a_task_without_an_end_is_read_as_far_as_it_is_long():
    class Endless(Task):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return exchange(f"{index}?", "yes")

    assert len(list(as_bytes(Endless()))) == 3


def test_conversations_in_both_mixtures_are_counted(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [exchange(f"{i}?", "yes") for i in range(5)])
    train = list(as_bytes(mixture(f"smoltalk@{path}", "train", 1)))
    held_out = as_bytes(mixture(f"smoltalk@{path}:0.4", "test", 1))
    assert fingerprint(train, held_out) == fingerprint(train)
    assert "2 conversations are in training and equal to held-out ones" in capsys.readouterr().out
    assert fingerprint(train, []) != fingerprint(random.Random(0).sample(train, 5))
    assert not capsys.readouterr().out
