"""Tokens of an answer as they come: tool calls found, text released in whole characters, stop
strings caught."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from nanochat.conversation import PART_MARKS

Tool = Callable[[str], str]  # text of a call -> text of its result, or of what went wrong

TOOL_THREADS = 4
PATIENCE = 0.05  # seconds to wait for a result where there is nothing else to do


class ToolCalls:
    """Finds the tool calls in one answer: reads each token that the model chose.

    Example: read(<|python_start|>), read("1+1"), read(<|python_end|>) return None, None, "1+1";
    then forced("2") is the ids of <|output_start|> 2 <|output_end|>.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self._call: list[int] | None = None  # ids since <|python_start|>; None outside a call

    def read(self, token: int) -> str | None:
        """The text of the call that this token completes, else None."""
        special = self.tokenizer.special
        call = None
        if token == special("<|python_start|>"):
            self._call = []
        elif token == special("<|python_end|>") and self._call is not None:
            call, self._call = self.tokenizer.decode(self._call), None
        elif self._call is not None:
            self._call.append(token)
        return call

    def forced(self, result: str) -> list[int]:
        """The ids that come next, whatever the model thinks: a tool's result between its marks."""
        special = self.tokenizer.special
        ids = self.tokenizer.encode_ordinary(result)
        return [special("<|output_start|>"), *ids, special("<|output_end|>")]


class AnswerReader:
    """Reads the ids of an answer as they come, into the parts of a message.

    push(token) returns the text that the token releases, whole characters only; `kind` is then the
    type of part that the next text belongs to: "text", "python" or "python_output". Text that may
    be the beginning of one of `stop_strings` is held back; once one is complete in a part of kind
    "text", `stopped` is true, and neither it nor what follows is released.

    Example: with stop_strings ("END",), "a", "E", "x", "EN", "D" release "a", "", "Ex", "", "".
    """

    def __init__(self, tokenizer, stop_strings: Sequence[str] = ()):
        self.kind, self.parts = "text", []
        self.stopped = False
        self._stop_strings = tuple(stop_strings)
        self._held = ""
        self._decoder = tokenizer.stream_decoder()
        marks = {kind: marks for kind, marks in PART_MARKS.items() if marks[0]}
        self._starts = {tokenizer.special(start): kind for kind, (start, _, _) in marks.items()}
        self._ends = {tokenizer.special(end) for _, end, _ in marks.values()}

    def push(self, token: int) -> str:
        if token not in self._starts and token not in self._ends:
            return self._add(self._watch(self._decoder.push(token)))
        text = self.flush()
        self.kind = self._starts.get(token, "text")
        return text

    def flush(self) -> str:
        """What is left at the end: what was held back, and U+FFFD for a character that was never
        completed."""
        text = self._watch(self._decoder.flush()) + self._held
        self._held = ""
        return self._add(text)

    def _watch(self, text: str) -> str:
        """The part of all text so far that can be released now."""
        if self.stopped:
            return ""
        if not self._stop_strings or self.kind != "text":
            return text
        text = self._held + text
        places = [place for stop in self._stop_strings if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        longest = max(beginning_at_end(text, stop) for stop in self._stop_strings)
        released = text[: len(text) - longest]
        self._held = text[len(released) :]
        return released

    def _add(self, text: str) -> str:
        if text and (not self.parts or self.parts[-1]["type"] != self.kind):
            self.parts.append({"type": self.kind, "text": ""})
        if text:
            self.parts[-1]["text"] += text
        return text


def beginning_at_end(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with.

    Example: beginning_at_end("an EN", "END") == 2
    """
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)


class ToolRunner:
    """Runs tool calls in threads, so that other answers go on meanwhile.

    Example: runner.ask(7, evaluate, "1+1"); runner.results(patient=True) == [(7, "2")]
    """

    def __init__(self):
        self._threads = ThreadPoolExecutor(TOOL_THREADS, "tool")  # starts none before a call
        self._calls: dict[int, Future[str]] = {}

    def ask(self, id: int, tool: Tool, call: str) -> None:
        """Starts a call for answer `id`."""
        self._calls[id] = self._threads.submit(tool, call)

    def drop(self, id: int) -> None:
        """Nobody waits for this result any more."""
        if (call := self._calls.pop(id, None)) is not None:
            call.cancel()

    def results(self, patient: bool) -> list[tuple[int, str]]:
        """(id, result) of the calls that have ended since; a patient caller waits a moment for
        one. A tool that raises has the result "error: ..."."""
        if patient and self._calls:
            wait(self._calls.values(), PATIENCE, FIRST_COMPLETED)
        ended = [id for id, call in self._calls.items() if call.done()]
        return [(id, tool_result(self._calls.pop(id))) for id in ended]


def tool_result(call: Future[str]) -> str:
    error = call.exception()
    return call.result() if error is None else f"error: {error}"
