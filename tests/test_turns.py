"""Conversations made to fit: which turns go, counted by hand."""

import pytest
from chain_model import chain_tokenizer

from nanochat.common import ConfigError
from nanochat.conversation import fit_turns, prompt_ids

TOKENIZER = chain_tokenizer()  # a token for every character


def talk(*lengths, system=0):
    told = [{"role": "system", "content": "s" * system}] if system else []
    roles = ["user", "assistant"] * len(lengths)
    return told + [
        {"role": role, "content": str(i) * n}
        for i, (role, n) in enumerate(zip(roles, lengths, strict=False))
    ]


def test_what_fits_stays():
    messages = talk(3, 4, 5)
    ids, forgotten = fit_turns(messages, TOKENIZER, 40)
    assert forgotten == 0 and ids == prompt_ids(messages, TOKENIZER)
    # <|bos|>; 3 and 4 with two marks each; 5 with two marks; <|assistant_start|>
    assert len(ids) == 1 + 3 + 2 + 4 + 2 + 5 + 2 + 1


def test_the_oldest_turns_go_and_the_system_message_stays():
    messages = talk(10, 10, 10, 10, 10, system=6)
    ids, forgotten = fit_turns(messages, TOKENIZER, 64)  # 48 may be used; a turn has 24
    assert forgotten == 1
    assert ids == prompt_ids([messages[0], *messages[3:]], TOKENIZER)
    assert TOKENIZER.decode(ids).startswith("<|bos|><|user_start|>ssssss\n\n2222222222<|user_end|>")


def test_the_last_question_stays_while_it_fits_at_all():
    ids, forgotten = fit_turns(talk(5, 5, 35), TOKENIZER, 40)
    assert forgotten == 1 and len(ids) == 39
    with pytest.raises(ConfigError, match="has 40 tokens; the context of 40 takes at most 39"):
        fit_turns(talk(5, 5, 36), TOKENIZER, 40)


def test_nothing_is_forgotten_unless_allowed():
    with pytest.raises(ConfigError, match="the conversation has"):
        fit_turns(talk(10, 10, 10), TOKENIZER, 38, forget=False)
    ids, _ = fit_turns(talk(10, 10, 10), TOKENIZER, 39, forget=False)
    assert len(ids) == 38  # more than three quarters


def test_an_answer_is_gone_on_with():
    ids = prompt_ids(talk(1, 2), TOKENIZER)
    assert TOKENIZER.decode(ids) == "<|bos|><|user_start|>0<|user_end|><|assistant_start|>11"
