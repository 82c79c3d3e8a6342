"""Markdown that is shown while it is written: where it is cut, and what is left on the screen."""

import io

import pyte
import pytest
from rich.console import Console

from nanochat.chat import markdown_stream
from nanochat.chat.markdown_stream import MarkdownStream, split_complete


@pytest.fixture(autouse=True)
def drawn_at_once(monkeypatch):
    monkeypatch.setattr(markdown_stream, "REDRAW_SECONDS", 0.0)


@pytest.mark.parametrize(
    "done, rest",
    [
        ("", "one"),
        ("one\n\n", "two"),
        ("one\n\n", "```\na\n\nb\n"),
        ("```\na\n\nb\n```\n\n", "c"),
        ("~~~\n```\n\n~~~\n\n", ""),
        ("", "````\n```\n\nstill inside"),
        ("a\n\n", "    "),
    ],
)
def test_blocks_are_done_at_blank_lines_outside_of_fences(done, rest):
    assert split_complete(done + rest) == (done, rest)


def shown(write, height=20) -> str:
    """What is left on the screen after an answer, cursor movements obeyed by hand: on a file that
    is no terminal rich leaves out what was only shown for a while."""
    console = Console(file=io.StringIO(), width=40, height=height, force_terminal=False)
    stream = MarkdownStream(console)
    write(stream)
    return console.file.getvalue()


def test_every_character_is_left_once_however_it_came():
    text = "# Title\n\nA **bold** word.\n\n```python\nx = 1\n\ny = 2\n```\n\n- a\n- b\n\nend"

    def whole(stream):
        stream.part("text", text)
        stream.end(stopped=False)

    def letters(stream):
        for letter in text:
            stream.part("text", letter)
        stream.end(stopped=False)

    assert shown(letters).split() == shown(whole).split()
    assert shown(letters).count("bold") == 1 and "**" not in shown(letters)
    assert "x = 1" in shown(letters) and "•" in shown(letters)


def test_a_block_longer_than_the_screen_is_left_whole():
    def write(stream):
        for i in range(50):
            stream.part("text", f"line {i}  \n")
        stream.end(stopped=False)

    lines = shown(write, height=10).split()
    assert lines == [word for i in range(50) for word in ("line", str(i))]


def test_a_tool_call_is_one_line_and_a_stop_is_said():
    def write(stream):
        stream.part("text", "Let me see.")
        stream.part("python", "37*12")
        stream.part("python_output", "444")
        stream.part("text", "It is 444")
        stream.part("python", "1+")
        stream.end(stopped=True)

    out = shown(write)
    assert "[python] 37*12 = 444\n" in out and "[python] 1+\n" in out and "(stopped)" in out
    assert out.index("Let me see.") < out.index("[python]") < out.index("It is 444")


class Emulator(io.StringIO):
    """A terminal of 60 x 12 that understands what is written to it, and keeps what scrolls off."""

    def __init__(self):
        super().__init__()
        self.screen = pyte.HistoryScreen(60, 12, history=1000)
        self.stream = pyte.Stream(self.screen)

    def write(self, text):
        self.stream.feed(text.replace("\n", "\r\n"))
        return len(text)

    def words(self) -> list[str]:
        gone = ["".join(line[i].data for i in range(60)) for line in self.screen.history.top]
        return " ".join([*gone, *self.screen.display]).split()


@pytest.mark.parametrize("step", [9, 40, 5000])
@pytest.mark.slow
def test_a_terminal_is_left_with_every_word_once(step):
    """What was drawn again and again, lists, code and blocks longer than the screen, leaves no
    trace."""
    words = [f"w{i}" for i in range(400)]
    blocks = [" ".join(words[i : i + n]) for i, n in [(0, 9), (9, 150), (159, 30), (189, 151)]]
    items = [f"{i + 1}. {word}" for i, word in enumerate(words[340:390])]
    text = "\n\n".join([*blocks, "\n".join(items), "```\n" + "\n".join(words[390:]) + "\n```"])
    file = Emulator()
    console = Console(file=file, width=60, height=12, force_terminal=True)
    stream = MarkdownStream(console)
    for i in range(0, len(text), step):
        stream.part("text", text[i : i + step])
        if step == 40 and i == 480:  # in the middle of a paragraph that the screen cannot hold
            assert text[: i + step].split()[-2] in file.screen.display[9] + file.screen.display[10]
    stream.part("python", "1+1")
    stream.part("python_output", "2")
    stream.part("text", "end")
    stream.end(stopped=False)
    left = file.words()
    assert [word for word in left if word.startswith("w")] == words
    assert left[-5:] == ["[python]", "1+1", "=", "2", "end"]
