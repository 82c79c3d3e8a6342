"""The conversation in a terminal, on a real engine: commands, answers, Ctrl-C."""

import contextlib
import io
import json
import signal

import pytest
from chain_model import chain_model, chain_tokenizer

from nanochat.chat.terminal import Chat, PlainShow, plain_lines
from nanochat.engine import Engine
from nanochat.inference.sampling import SamplingParams

TOKENIZER = chain_tokenizer()
ONE = ["<|assistant_start|>one<|assistant_end|>"]
SUM = ["<|assistant_start|>S<|python_start|>1+2<|python_end|>", "<|output_end|>!<|assistant_end|>"]
DICE = ["<|assistant_start|>" + a for a in "ABCDE"] + [a + b for a in "ABCDE" for b in "ABCDE"]
ROUND = ["<|assistant_start|>ABCDEFGHIJA"]


class Talk:
    """A chat whose answers and notes are kept."""

    def __init__(self, texts, *, max_tokens=30, temperature=0.0, context=256, show=PlainShow):
        self.told = []
        engine = Engine(chain_model(TOKENIZER, *texts, context=context), TOKENIZER)
        params = SamplingParams(temperature, seed=1)
        self.chat = Chat(engine, params, max_tokens, show, self.told.append)

    def say(self, line):
        """(the answer shown, the notes) of one line."""
        self.told.clear()
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            assert self.chat.say(line)
        return shown.getvalue(), " ".join(self.told)


def test_an_answer_is_shown_and_kept():
    talk = Talk(ONE)
    assert talk.say("Hi") == ("one\n", "")
    assert talk.chat.messages == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "text", "text": "one"}]},
    ]
    assert talk.say("  ") == ("", "")
    assert not talk.chat.say("/quit")


def test_a_tool_call_is_shown_as_one_line():
    talk = Talk(SUM)
    assert talk.say("Hi")[0] == "S[python] 1+2 = 3\n!\n"
    kinds = [part["type"] for part in talk.chat.messages[1]["content"]]
    assert kinds == ["text", "python", "python_output", "text"]


def test_a_tool_call_that_was_cut_short_is_shown_as_far_as_it_came():
    assert Talk(SUM, max_tokens=4).say("Hi")[0] == "S[python] 1+\n"


def test_regenerate_answers_the_same_question_with_other_noise():
    talk = Talk(DICE, temperature=1.0)
    assert "nothing has been asked" in talk.say("/regenerate")[1]
    first, _ = talk.say("Hi")
    again, _ = talk.say("/regenerate")
    assert len(first) == len(again) == 31 and first != again
    assert [message["content"] for message in talk.chat.messages[:1]] == ["Hi"]
    assert talk.chat.messages[1]["content"] == [{"type": "text", "text": again.strip()}]
    assert len(talk.chat.messages) == 2


def test_temperature():
    talk = Talk(DICE, temperature=1.0)
    assert talk.say("/temperature 0")[1] == "temperature 0"
    assert talk.say("Hi")[0] == "A" * 30 + "\n"
    for wrong in ("", "warm", "-1", "nan"):
        assert "temperature" in talk.say(f"/temperature {wrong}")[1]
        assert talk.chat.params.temperature == 0


def test_the_system_message_comes_and_goes():
    talk = Talk(ONE)
    talk.say("Hi")
    talk.say("/system Be kind. <|bos|>")
    assert talk.chat.messages[0] == {"role": "system", "content": "Be kind. <|bos|>"}
    talk.say("/system Be brief.")
    assert [m["role"] for m in talk.chat.messages] == ["system", "user", "assistant"]
    assert talk.say("Hm")[0] == "one\n"
    talk.say("/system")
    assert [m["role"] for m in talk.chat.messages] == ["user", "assistant"] * 2
    talk.say("/clear")
    assert talk.chat.messages == []


def test_save_and_load(tmp_path):
    talk, path = Talk(SUM), tmp_path / "talk.json"
    talk.say("/system Be kind.")
    talk.say("Grüße")
    said = list(talk.chat.messages)
    assert "saved 3 messages" in talk.say(f"/save {path}")[1]
    other = Talk(SUM)
    assert "3 messages" in other.say(f"/load {path}")[1]
    assert other.chat.messages == said == json.loads(path.read_text())["messages"]
    other.say("/clear")
    other.say(f"/save {path}")
    assert talk.say(f"/load {path}")[1].startswith("0 messages") and talk.chat.messages == []


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{", "is not JSON"),
        ("[1]", "found [1], expected"),
        ('{"messages": [{"role": "robot"}]}', "found role 'robot'"),
        (None, "No such file"),
    ],
)
def test_what_cannot_be_loaded_changes_nothing(tmp_path, text, expected):
    talk, path = Talk(ONE), tmp_path / "talk.json"
    talk.say("Hi")
    before = list(talk.chat.messages)
    if text is not None:
        path.write_text(text)
    assert expected in talk.say(f"/load {path}")[1]
    assert talk.chat.messages == before
    assert "needs a file" in talk.say("/load")[1] and "needs a file" in talk.say("/save")[1]


def test_unknown_commands_name_the_known_ones():
    told = Talk(ONE).say("/tempreture 1")[1]
    assert "there is no command /tempreture" in told and "/temperature X" in told


def test_ctrl_c_stops_the_answer_and_not_the_program():
    class Interrupted(PlainShow):
        def part(self, kind, text):
            super().part(kind, text)
            if text == "E":
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    talk = Talk(ROUND, max_tokens=100, show=Interrupted)
    assert talk.say("Hi")[0] == "ABCDE (stopped)\n"
    assert not talk.chat.engine.has_work and signal.getsignal(signal.SIGINT) is before
    assert talk.chat.messages[1]["content"] == [{"type": "text", "text": "ABCDE"}]
    talk.chat.new_show = PlainShow
    assert talk.say("More")[0] == "ABCDEFGHIJ" * 10 + "\n"


def test_a_full_context_is_told_of():
    talk = Talk(ONE, context=64)
    assert talk.say("x" * 30) == ("one\n", "")
    shown, told = talk.say("y" * 30)
    assert shown == "one\n" and "the first 1 turns are no longer seen" in told
    assert "the context of 64" in talk.say("z" * 70)[1]
    assert len(talk.chat.messages) == 4


def test_plain_lines_go_on_after_a_backslash(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\\\nthree\nfour\\"))
    assert list(plain_lines()) == ["one", "two\nthree", "four"]
