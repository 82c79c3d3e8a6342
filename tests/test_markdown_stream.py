"""Markdown that is shown while it is written: where it is cut, and what is left on the screen."""

import io

import pytest
from rich.console import Console

from nanochat.markdown_stream import MarkdownStream, split_done


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
    assert split_done(done + rest) == (done, rest)


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
        stream.text(text)
        stream.end(stopped=False)

    def letters(stream):
        for letter in text:
            stream.text(letter)
        stream.end(stopped=False)

    assert shown(letters).split() == shown(whole).split()
    assert shown(letters).count("bold") == 1 and "**" not in shown(letters)
    assert "x = 1" in shown(letters) and "•" in shown(letters)


def test_a_block_longer_than_the_screen_is_left_whole():
    def write(stream):
        for i in range(50):
            stream.text(f"line {i}  \n")
        stream.end(stopped=False)

    lines = shown(write, height=10).split()
    assert lines == [word for i in range(50) for word in ("line", str(i))]


def test_a_tool_call_is_one_line_and_a_stop_is_said():
    def write(stream):
        stream.text("Let me see.")
        stream.call("37*12")
        stream.result("444")
        stream.text("It is 444")
        stream.call("1+")
        stream.end(stopped=True)

    out = shown(write)
    assert "[python] 37*12 = 444\n" in out and "[python] 1+\n" in out and "(stopped)" in out
    assert out.index("Let me see.") < out.index("[python]") < out.index("It is 444")
