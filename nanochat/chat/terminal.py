"""A conversation in a terminal: reading lines, commands, and answers shown as they come.

On a terminal prompt_toolkit reads the lines and answers are shown as Markdown; elsewhere both are
plain text, so that pipes work.
"""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanochat.chat.choices import Choice
from nanochat.common import ConfigError, NanochatError
from nanochat.conversation import fit_turns, validate
from nanochat.engine import Engine, Request
from nanochat.files import base_dir, read_json, write_atomic
from nanochat.inference.sampling import SamplingParams

HELP = """\
/system TEXT      set the system prompt; without TEXT: remove it
/temperature X    how freely to choose words: 0 the likeliest, 1 as the model would
/regenerate       answer the last question again
/save FILE        write the conversation as JSON
/load FILE        continue a saved conversation
/clear            forget the conversation
/help  /quit      (or Ctrl-D)
Alt-Enter, or \\ at the end of a line, begins another line; Ctrl-C stops an answer."""


class PlainShow:
    """Shows an answer as plain text."""

    def part(self, kind: str, text: str) -> None:
        text = {"text": "", "python": "[python] ", "python_output": " = "}[kind] + text
        print(text, end="\n" if kind == "python_output" else "", flush=True)

    def end(self, stopped: bool) -> None:
        print(" (stopped)" if stopped else "")


@dataclass
class Chat:
    """A conversation and its settings. `say(line)` obeys a command or answers a question.

    new_show makes what shows one answer; tell prints everything else.
    """

    engine: Engine
    params: SamplingParams
    max_tokens: int
    new_show: Callable[[], PlainShow] = PlainShow  # or MarkdownStream
    tell: Callable[[str], object] = print
    messages: list[dict] = field(default_factory=list)

    def say(self, line: str) -> bool:
        """False when the user wants to leave."""
        command, _, text = line.strip().partition(" ")
        text = text.strip()
        try:
            match command:
                case "/quit":
                    return False
                case "/help":
                    self.tell(HELP)
                case "/system":
                    self.messages = [m for m in self.messages if m["role"] != "system"]
                    if text:
                        self.messages.insert(0, {"role": "system", "content": text})
                    self.tell("system prompt set" if text else "no system prompt")
                case "/temperature":
                    try:
                        temperature = float(text)
                    except ValueError:
                        raise ConfigError(f"the temperature {text!r} is not a number") from None
                    self.params = replace(self.params, temperature=temperature)
                    self.tell(f"temperature {self.params.temperature:g}")
                case "/regenerate":
                    if not self.messages or self.messages[-1]["role"] != "assistant":
                        raise ConfigError("nothing has been asked yet")
                    *self.messages, question, _ = self.messages
                    self.ask(question["content"])
                case "/save" | "/load" if not text:
                    raise ConfigError(f"{command} needs a file's name")
                case "/save":
                    conversation = json.dumps({"messages": self.messages}, ensure_ascii=False)
                    write_atomic(Path(text).expanduser(), conversation + "\n")
                    self.tell(f"saved {len(self.messages)} messages in {text}")
                case "/load":
                    conversation = read_json(Path(text).expanduser(), "Load what /save wrote")
                    if conversation != {"messages": []}:  # what /save writes before any question
                        validate(conversation, text)
                    self.messages = conversation["messages"]
                    self.tell(f"{len(self.messages)} messages from {text}")
                case "/clear":
                    self.messages = []
                    self.tell("conversation cleared")
                case _ if command.startswith("/"):
                    self.tell(f"there is no command {command}\n{HELP}")
                case _ if command:
                    self.ask(line.strip())
        except (NanochatError, OSError) as error:
            self.tell(str(error))
        return True

    def ask(self, content: str | list[dict]) -> None:
        """Answers a question, shows the answer as it comes, and keeps both. Ctrl-C ends it."""
        question, engine = {"role": "user", "content": content}, self.engine
        context = engine.model.config.sequence_len
        prompt, forgotten = fit_turns([*self.messages, question], engine.tokenizer, context)
        if forgotten:
            self.tell(f"(the context is full: the first {forgotten} turns are no longer seen)")
        show, choice, pressed = self.new_show(), Choice(engine.tokenizer), []

        # subtle: an exception in the middle of a step would leave the engine half done
        def press(*_) -> None:
            pressed.append(True)
            signal.signal(signal.SIGINT, before)  # for a second Ctrl-C

        before = signal.signal(signal.SIGINT, press)
        try:
            max_tokens = min(self.max_tokens, context - len(prompt))
            request_id = engine.add(Request(prompt, max_tokens, self.params))
            while choice.finish is None:
                for event in engine.step():
                    if part := choice.push(event):
                        show.part(part["type"], part["text"])
                if pressed:
                    engine.cancel(request_id)  # the next step returns its last event
        finally:
            signal.signal(signal.SIGINT, before)
        show.end(stopped=bool(pressed))
        self.messages += [question, {"role": "assistant", "content": choice.parts}]
        # subtle: else a question asked again would meet the same noise
        self.params = replace(self.params, seed=self.params.seed + 1)


def plain_lines() -> Iterator[str]:
    r"""Lines of standard input until its end; one that ends in \ continues in the next."""
    text = ""
    for line in sys.stdin:
        text += line.removesuffix("\n")
        if text.endswith("\\"):
            text = text[:-1] + "\n"
            continue
        yield text
        text = ""
    if text:
        yield text.removesuffix("\n")


def edited_lines() -> Iterator[str]:
    """Lines typed until Ctrl-D, with history; Ctrl-C drops a line."""
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
            yield session.prompt("you: ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def converse(engine: Engine, params: SamplingParams, max_tokens: int) -> None:
    """Answers questions until /quit or the end of the input."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    new_show = PlainShow
    if terminal:
        # subtle: here, because rich's Markdown takes a tenth of the time that -p takes to start
        from nanochat.chat.markdown_stream import MarkdownStream as new_show
    chat = Chat(engine, params, max_tokens, new_show)
    for line in edited_lines() if terminal else plain_lines():
        if not chat.say(line):
            return
        if terminal:
            print()
