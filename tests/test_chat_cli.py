"""The program in the terminal, as people start it: through a pipe, and on a pseudo-terminal."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from chain_model import chain_model, chain_tokenizer
from tiny_checkpoint import save

from nanochat.common import ConfigError
from nanochat.configurator import parse
from scripts import chat_cli

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "scripts.chat_cli"]
ROUND = ("<|assistant_start|>ABCDEFGHIJA",)
SUM = "<|assistant_start|>S<|python_start|>1+2<|python_end|>", "<|output_end|>!<|assistant_end|>"


def checkpoint(*texts, context=256):
    tokenizer = chain_tokenizer()
    model = chain_model(tokenizer, *texts, context=context)
    return str(save(stage="sft", tag="chain", model=model, tokenizer=tokenizer))


def environment(base) -> dict:
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NANOCHAT_BASE_DIR": str(base)}
    return {
        **os.environ,
        **more,
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "TERM": "xterm",
        "NO_COLOR": "1",
        "NANOCHAT_CPU_KERNELS": "torch",
    }


def run(monkeypatch, capsys, source, typed="", **options) -> str:
    """Standard output of the program in this process, standard input being `typed`."""
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    capsys.readouterr()
    chat_cli.main(chat_cli.Config(source=source, **options))
    return capsys.readouterr().out


def test_one_question_through_a_pipe(monkeypatch, capsys):
    source = checkpoint(*SUM)
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 1 + 2?\n"))
    capsys.readouterr()
    chat_cli.main(parse(chat_cli.Config, ["-i", source, "-p", "-"]))
    out, err = capsys.readouterr()
    assert out == "S[python] 1+2 = 3\n!\n"  # the answer alone
    assert "device: " in err


def test_a_conversation_through_a_pipe(monkeypatch, capsys):
    typed = "Hi\n/system Be kind.\nTwo\\\nlines\n/quit\nnever\n"
    out = run(monkeypatch, capsys, checkpoint(*SUM), typed, temperature=0.0)
    answer = "S[python] 1+2 = 3\n!\n"
    assert out == f"{answer}system prompt set\n{answer}"


def test_one_question_is_answered_greedily_and_to_its_length(monkeypatch, capsys):
    pairs = ["<|assistant_start|>" + a for a in "AB"] + ["AA", "AB", "BA", "BB"]
    source = checkpoint(*pairs)
    assert run(monkeypatch, capsys, source, prompt="Hi", max_tokens=9) == "A" * 9 + "\n"
    warm = run(monkeypatch, capsys, source, prompt="Hi", max_tokens=40, temperature=1.0)
    assert {"A", "B"} == set(warm.strip())


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"prompt": " "}, "the question is empty"),
        ({"prompt": "-"}, "the question is empty"),
        ({"prompt": "x" * 300}, "the context of 256"),
        ({"prompt": "Hi", "tool": "hammer"}, "tool 'hammer' is unknown"),
    ],
)
def test_bad_questions(monkeypatch, capsys, options, expected):
    with pytest.raises(ConfigError, match=expected):
        run(monkeypatch, capsys, checkpoint(*SUM), **options)


class Terminal:
    """The program on a pseudo-terminal of 24 lines and 80 columns."""

    def __init__(self, command, env):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=env,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def type(self, text):
        os.write(self.master, text.encode())

    def until(self, text, seconds=120) -> str:
        """Reads until `text` is there; returns what came up to it, escape sequences left out."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            left = end - time.monotonic()
            assert left > 0 and select.select([self.master], [], [], left)[0], self.seen
            data = os.read(self.master, 65536).decode(errors="replace")
            self.seen += re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>])", "", data)
        before, _, self.seen = self.seen.partition(text)
        return before

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.mark.slow
def test_commands_arrows_and_ctrl_c_on_a_terminal(base_dir, tmp_path):
    source = checkpoint(*ROUND, context=8192)
    terminal = Terminal([*COMMAND, "-i", source, "--max-tokens=8000"], environment(base_dir))
    try:
        terminal.until("you:")
        terminal.type("Hi\r")
        terminal.until("ABCDEFGHIJ")
        terminal.type("\x03")  # Ctrl-C: the answer stops, the program does not
        terminal.until("(stopped)")
        terminal.until("you:")
        terminal.type("/temperature 0.25\r")
        terminal.until("temperature 0.25")
        terminal.until("you:")
        terminal.type(f"/save {tmp_path / 'talk.json'}\r")
        terminal.until("saved 2 messages")
        terminal.until("you:")
        terminal.type("nothing\x03")  # Ctrl-C: the line is dropped
        terminal.until("you:")
        terminal.type("\x1b[A\x1b[A\r")  # two lines back in the history
        terminal.until("temperature 0.25")
        terminal.until("you:")
        terminal.type("/system one\x1b\rtwo\r")  # Alt-Enter: another line
        terminal.until("prompt set")
        terminal.type(f"/save {tmp_path / 'talk.json'}\r")
        terminal.until("saved 3 messages")
        terminal.until("you:")
        terminal.type("\x04")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.end()
    assert '"one\\ntwo"' in (tmp_path / "talk.json").read_text()
    assert (base_dir / "chat_history").stat().st_mode & 0o777 == 0o600
