"""A conversation in a terminal: reading lines, commands, and answers shown as they come.

On a terminal lines are read by prompt_toolkit (arrows, history, several lines) and answers are
shown as Markdown; elsewhere both are plain text, so that pipes work.
"""

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanochat.chat.choices import Choice
from nanochat.chat.markdown_stream import MarkdownStream
from nanochat.common import ConfigError, DataError
from nanochat.conversation import fit_turns, turns_of, validate
from nanochat.engine import Engine, Request
from nanochat.files import base_dir, write_atomic
from nanochat.inference.sampling import SamplingParams

HELP = """\
/system TEXT      what the model is told before the conversation; alone: forget it
/temperature X    how freely words are chosen: 0 the likeliest, 1 as the model would
/regenerate       answer the last question again
/save FILE        write the conversation as JSON
/load FILE        go on with a conversation that was saved
/clear            forget the conversation
/help  /quit      (or Ctrl-D)
Alt-Enter, or \\ at the end of a line, begins another line; Ctrl-C stops an answer."""


class PlainShow:
    """Shows an answer as plain text, tool calls as `[python] 37*12 = 444`."""

    def __init__(self, write: Callable[[str], object], dim: bool = False):
        self._write = write
        self._dim, self._plain = ("\x1b[2m", "\x1b[0m") if dim else ("", "")

    def text(self, text: str) -> None:
        self._write(text)

    def call(self, code: str) -> None:
        self._write(f"{self._dim}[python] {code}{self._plain}")

    def result(self, text: str) -> None:
        self._write(f"{self._dim} = {text}{self._plain}\n")

    def end(self, stopped: bool) -> None:
        self._write(" (stopped)\n" if stopped else "\n")


@contextlib.contextmanager
def stop_flag() -> Iterator[list]:
    """Yields a list that Ctrl-C puts something into; a second Ctrl-C raises as ever.

    subtle: an exception could come in the middle of a step and leave the engine half done.
    """
    pressed: list = []

    def press(*_) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def answer(engine: Engine, request: Request, show) -> list[dict]:
    """Runs one request and shows what comes; returns its parts. Ctrl-C ends it early."""
    said = Choice(engine.tokenizer)
    with stop_flag() as pressed:
        request_id = engine.add(request)
        while said.finish is None:
            for event in engine.step():
                for delta in said.push(event):
                    show_delta(show, delta)
            if pressed:
                engine.cancel(request_id)  # the next step returns its last event
    show.end(stopped=bool(pressed))
    return said.parts


def show_delta(show, delta: dict) -> None:
    """Hands a piece of an answer to what shows it."""
    if "content" in delta:
        show.text(delta["content"])
    elif "tool_calls" in delta:
        show.call(delta["tool_calls"][0]["function"]["arguments"])
    else:
        show.result(delta["nanochat"]["text"])


@dataclass
class Chat:
    """A conversation and its settings. `say(line)` obeys a command or answers a question."""

    engine: Engine
    params: SamplingParams
    max_tokens: int
    show: Callable[[], object]  # makes what shows one answer
    tell: Callable[[str], object] = print
    messages: list[dict] = field(default_factory=list)

    def say(self, line: str) -> bool:
        """False when the user wants to leave."""
        command, _, argument = line.strip().partition(" ")
        commands = {
            "/system": self._system,
            "/temperature": self._temperature,
            "/regenerate": self._regenerate,
            "/save": self._save,
            "/load": self._load,
            "/clear": self._clear,
        }
        if command == "/quit":
            return False
        try:
            if command in commands:
                commands[command](argument.strip())
            elif command.startswith("/"):
                self.tell(HELP if command == "/help" else f"{command} is no command\n{HELP}")
            elif command:
                self._ask({"role": "user", "content": line.strip()})
        except (ConfigError, DataError, OSError) as error:
            self.tell(str(error))
        return True

    def _ask(self, question: dict) -> None:
        prompt, forgotten = fit_turns(
            [*self.messages, question], self.engine.tokenizer, self.engine.model.config.sequence_len
        )
        if forgotten:
            self.tell(f"(the context is full: the first {forgotten} turns are no longer seen)")
        room = self.engine.model.config.sequence_len - len(prompt)
        request = Request(prompt, min(self.max_tokens, room), self.params)
        parts = answer(self.engine, request, self.show())
        self.messages += [question, {"role": "assistant", "content": parts}]
        # subtle: else a question asked again would meet the same noise
        self.params = replace(self.params, seed=self.params.seed + 1)

    def _system(self, text: str) -> None:
        _, turns = turns_of(self.messages)
        system = [{"role": "system", "content": text}] if text else []
        self.messages = [*system, *(message for turn in turns for message in turn)]
        self.tell("the model is told so" if text else "the model is told nothing")

    def _temperature(self, text: str) -> None:
        try:
            self.params = replace(self.params, temperature=float(text))
        except ValueError:
            raise ConfigError(f"{text!r} is no temperature; give a number, 0 or more") from None
        self.tell(f"temperature {self.params.temperature:g}")

    def _regenerate(self, _: str) -> None:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise ConfigError("nothing has been asked yet")
        *self.messages, question, _ = self.messages
        self._ask(question)

    def _save(self, path: str) -> None:
        if not path:
            raise ConfigError("/save needs a file's name")
        conversation = json.dumps({"messages": self.messages}, ensure_ascii=False)
        write_atomic(Path(path).expanduser(), conversation + "\n")
        self.tell(f"saved {len(self.messages)} messages in {path}")

    def _load(self, path: str) -> None:
        if not path:
            raise ConfigError("/load needs a file's name")
        try:
            conversation = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is not JSON: {error}. Load what /save wrote") from None
        messages = conversation.get("messages") if isinstance(conversation, dict) else None
        if messages != []:  # which is what /save writes before the first question
            validate(conversation, path)
        self.messages = messages
        self.tell(f"{len(self.messages)} messages from {path}")

    def _clear(self, _: str) -> None:
        self.messages = []
        self.tell("forgotten")


# ---------------------------------------------------------------- reading lines


def plain_lines(prompt: str) -> Iterator[str]:
    r"""Lines of standard input until its end; one that ends in \ goes on in the next."""
    while True:
        text = ""
        try:
            text = input(prompt)
            while text.endswith("\\"):
                text = text[:-1] + "\n" + input()
        except EOFError:
            if text:
                yield text.removesuffix("\\")
            return
        yield text


def edited_lines(prompt: str) -> Iterator[str]:
    """Lines typed at a terminal until Ctrl-D: arrows, history kept in the base folder, several
    lines with Alt-Enter or from a paste. Ctrl-C drops the line."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event) -> None:
        event.current_buffer.insert_text("\n")

    path = base_dir() / "chat_history"
    path.touch(mode=0o600)  # what was typed is the user's alone
    session = PromptSession(history=FileHistory(str(path)), multiline=True, key_bindings=keys)
    while True:
        try:
            yield session.prompt(prompt)
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def converse(engine: Engine, params: SamplingParams, max_tokens: int) -> None:
    """Reads questions and answers them until /quit or the end of the input."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    show = MarkdownStream if terminal else lambda: PlainShow(write_now)
    chat = Chat(engine, params, max_tokens, show)
    for line in (edited_lines if terminal else plain_lines)("you: " if terminal else ""):
        if not chat.say(line):
            return
        if terminal:
            print()


def write_now(text: str) -> None:
    """Writes to standard output at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
