"""Examples of CORE as token rows: texts by hand, boundaries, cuts. Nearly every token is a byte."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.evaluation.core_bundle import CoreTask
from nanochat.evaluation.core_prompts import (
    common_prefix,
    draw_shots,
    make_example,
    make_examples,
    prompts,
    scored_rows,
    subsample,
)
from nanochat.tokenizer import Tokenizer

PICK = CoreTask("pick", "multiple_choice", "", 0, "\nAnswer: ")
SCHEMA = CoreTask("schema", "schema", "", 0)
SAY = CoreTask("say", "language_modeling", "", 0)


@pytest.fixture(scope="module")
def byte_tokenizer() -> Tokenizer:
    return Tokenizer.train(["x"], 320)


def one(task, row, tokenizer, context=1000):
    return make_examples(task, [row], [0], tokenizer, context)[0]


def scored(example, tokenizer):
    return [tokenizer.decode(row.ids[row.start :].tolist()) for row in example.rows]


def whole(example, tokenizer):
    return [tokenizer.decode(row.ids.tolist()) for row in example.rows]


# ---------------------------------------------------------------- texts


def test_multiple_choice_by_hand():
    shot = {"query": "Q: 1+1", "choices": ["3", "2"], "gold": 1}
    row = {"query": "Q: 2+2", "choices": ["4", "5"], "gold": 0}
    assert prompts(PICK, row, [shot, shot]) == [
        "Q: 1+1\nAnswer: 2\n\nQ: 1+1\nAnswer: 2\n\nQ: 2+2\nAnswer: 4",
        "Q: 1+1\nAnswer: 2\n\nQ: 1+1\nAnswer: 2\n\nQ: 2+2\nAnswer: 5",
    ]


def test_schema_by_hand():
    shot = {"context_options": ["A he", "A she"], "continuation": "ran.", "gold": 1}
    row = {"context_options": ["The cat", "The dog"], "continuation": "barked.", "gold": 1}
    assert prompts(SCHEMA, row, [shot]) == [
        "A she ran.\n\nThe cat barked.",
        "A she ran.\n\nThe dog barked.",
    ]


def test_language_modelling_by_hand():
    shot = {"context": " one two: ", "continuation": "three"}
    row = {"context": "\nfour five ", "continuation": "six "}
    assert prompts(SAY, row, [shot]) == [
        "one two: three\n\nfour five",
        "one two: three\n\nfour five six ",
    ]


# ---------------------------------------------------------------- what is scored


def test_bos_stands_first_and_text_of_the_data_makes_no_special_token(byte_tokenizer):
    example = one(PICK, {"query": "<|bos|>", "choices": ["a", "b"], "gold": 1}, byte_tokenizer)
    for row in example.rows:
        assert row.ids[0] == byte_tokenizer.bos and byte_tokenizer.bos not in row.ids[1:]
    assert example.gold == 1 and not example.cut and not example.merged


def test_choices_are_scored_from_where_they_differ(byte_tokenizer):
    row = {"query": "Q", "choices": ["the cat", "the dog", "the doe!"], "gold": 2}
    assert scored(one(PICK, row, byte_tokenizer), byte_tokenizer) == ["cat", "dog", "doe!"]


@pytest.mark.parametrize(
    "choices, expected", [(["1", "12"], ["1", "12"]), (["ab", "ab"], ["b", "b"])]
)
def test_a_choice_that_begins_another_keeps_a_scored_token(choices, expected, byte_tokenizer):
    row = {"query": "Q", "choices": choices, "gold": 0}
    assert scored(one(PICK, row, byte_tokenizer), byte_tokenizer) == expected


def test_of_a_schema_the_common_end_is_scored(byte_tokenizer):
    row = {"context_options": ["The cat", "The dog"], "continuation": "barked", "gold": 1}
    example = one(SCHEMA, row, byte_tokenizer)
    assert scored(example, byte_tokenizer) == [" barked", " barked"]
    assert whole(example, byte_tokenizer) == ["<|bos|>The cat barked", "<|bos|>The dog barked"]


def test_equal_options_of_a_schema_never_score_bos(byte_tokenizer):
    row = {"context_options": ["a", "a"], "continuation": "b", "gold": 0}
    assert [r.start for r in one(SCHEMA, row, byte_tokenizer).rows] == [1, 1]


def test_the_blank_before_the_continuation_belongs_to_its_first_token():
    tokenizer = Tokenizer.train(["the cat sat the cat sat"] * 9, 320)
    assert len(tokenizer.encode_ordinary(" cat")) == 1
    row = {"context": "the ", "continuation": "cat sat"}
    example = one(SAY, row, tokenizer)
    assert scored(example, tokenizer) == [" cat sat"] and not example.merged
    assert [tokenizer.decode([i]) for i in example.rows[0].ids[-2:].tolist()] == [" cat", " sat"]


def test_a_token_across_the_boundary_is_scored_and_counted():
    tokenizer = Tokenizer.train(["abcd abcd abcd"] * 9, 320)
    task = CoreTask("say", "language_modeling", "", 0, delimiter="")
    example = one(task, {"context": "x ab", "continuation": "cd"}, tokenizer)
    assert len(tokenizer.encode_ordinary(" abcd")) == 1
    assert scored(example, tokenizer) == [" abcd"] and example.merged


def test_a_continuation_of_tokens_that_are_all_in_the_context_keeps_one():
    rows, starts = scored_rows("language_modeling", [np.array([9, 1, 2]), np.array([9, 1])])
    assert rows[0].tolist() == [9, 1] and starts == [1]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=4))
def test_common_prefix_is_the_longest(rows):
    n = common_prefix([np.array(row) for row in rows])
    assert all(row[:n] == rows[0][:n] for row in rows)
    shortest = min(map(len, rows))
    assert n == shortest or any(row[n] != rows[0][n] for row in rows)


# ---------------------------------------------------------------- cuts


def test_a_long_prompt_loses_its_beginning_and_the_scored_part_stays(byte_tokenizer):
    row = {"query": "0123456789", "choices": ["aa", "bbbb"], "gold": 0}
    example = one(PICK, row, byte_tokenizer, context=14)
    # <|bos|> + "0123456789" + "\nAnswer: " + 2 or 4 bytes = 22 or 24 ids
    assert whole(example, byte_tokenizer) == ["789\nAnswer: aa", "9\nAnswer: bbbb"]
    assert scored(example, byte_tokenizer) == ["aa", "bbbb"] and example.cut
    assert not one(PICK, row, byte_tokenizer, context=24).cut
    assert one(PICK, row, byte_tokenizer, context=23).cut


def test_a_continuation_longer_than_the_context_is_scored_as_far_as_it_fits(byte_tokenizer):
    example = one(SAY, {"context": "c", "continuation": "0123456789"}, byte_tokenizer, context=5)
    assert whole(example, byte_tokenizer) == ["56789"]
    assert scored(example, byte_tokenizer) == ["6789"] and example.cut


def test_only_rows_that_the_model_reads_count_as_cut():
    without, row = np.arange(9), np.arange(4)
    assert not make_example(SAY, {}, [without, row], 5).cut


# ---------------------------------------------------------------- drawing


def test_shots_are_drawn_by_index_without_the_example_itself():
    rows = [{"n": n} for n in range(12)]
    # random.Random(1234 + i).sample of the other eleven
    assert [r["n"] for r in draw_shots(rows, 0, 3)] == [8, 2, 1]
    assert [r["n"] for r in draw_shots(rows, 5, 3)] == [1, 4, 8]
    for i in range(12):
        drawn = [r["n"] for r in draw_shots(rows, i, 10)]
        assert i not in drawn and len(set(drawn)) == 10


def test_with_too_few_rows_all_others_are_shots():
    rows = [{"n": n} for n in range(4)]
    assert sorted(r["n"] for r in draw_shots(rows, 2, 10)) == [0, 1, 3]
    assert draw_shots(rows[:1], 0, 10) == []


def test_a_subsample_is_the_beginning_of_the_shuffled_rows():
    rows = [{"n": n} for n in range(10)]
    shuffled = [0, 3, 7, 2, 1, 6, 4, 5, 8, 9]  # random.Random(1337).shuffle
    assert [r["n"] for r in subsample(rows)] == shuffled
    assert [r["n"] for r in subsample(rows, 4)] == shuffled[:4]
    assert len(subsample(rows, 99)) == 10 and rows[0] == {"n": 0}
