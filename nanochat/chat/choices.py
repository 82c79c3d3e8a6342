"""The events of a sample -> what the API says of it: deltas, log-probabilities, usage, timing."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from nanochat.conversation import PART_MARKS
from nanochat.engine import TokenOutput
from nanochat.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0  # JSON has no -Infinity


@dataclass
class Choice:
    """One sample as it comes. `push` takes an event and returns the deltas that it completes:
    {"content": ...}, {"tool_calls": [...]} or {"nanochat": {"type": "python_output", ...}}.

    plain: no chat, so that there is nothing but text. parts: what was said, as conversation.py's
    parts; num_tokens: those of tool results included; finish: "stop" or "length" at the end.
    """

    tokenizer: Tokenizer
    tool_name: str = "calculator"
    plain: bool = False
    parts: list[dict] = field(default_factory=list)
    num_tokens: int = 0
    finish: str | None = None
    submitted: float = field(default_factory=time.monotonic)
    first: float | None = None  # when the first token came, and the last
    last: float | None = None

    def __post_init__(self):
        special = self.tokenizer.special
        self._ends = {special(end) for _, end, _ in PART_MARKS.values() if end}
        self._specials = set(self.tokenizer.special_ids.values())
        self._part, self._part_kind = "", ""  # a tool call or its result, as far as it came
        self._num_calls = 0
        self._logprobs: list[dict] = []

    def push(self, event: TokenOutput) -> list[dict]:
        """The deltas that an event completes; after the end, none."""
        if self.finish is not None:
            return []
        if event.token is not None:
            self._count()
        deltas = []
        if self.plain or event.kind == "text":
            self._note_logprobs(event)
            deltas += self._say(event.text)
        else:
            self._part, self._part_kind = self._part + event.text, event.kind
            if event.token in self._ends:
                deltas += self._end_part()
        if event.finish is not None:
            deltas += self.end("length" if event.finish == "cancelled" else event.finish)
        return deltas

    def end(self, finish: str) -> list[dict]:
        """Ends the answer, with "stop" or "length"; returns a tool call that was under way."""
        self.finish = finish
        return self._end_part() if self._part else []

    def _count(self) -> None:
        self.num_tokens += 1
        self.last = time.monotonic()
        if self.first is None:
            self.first = self.last

    def _say(self, text: str) -> list[dict]:
        if not text:
            return []
        if not self.parts or self.parts[-1]["type"] != "text":
            self.parts.append({"type": "text", "text": ""})
        self.parts[-1]["text"] += text
        return [{"content": text}]

    def _end_part(self) -> list[dict]:
        text, self._part = self._part, ""
        self.parts.append({"type": self._part_kind, "text": text})
        if self._part_kind == "python_output":
            return [{"nanochat": {"type": "python_output", "text": text}}]
        index, self._num_calls = self._num_calls, self._num_calls + 1
        return [{"tool_calls": [{"index": index, **self._call(index, text)}]}]

    def _call(self, index: int, code: str) -> dict:
        function = {"name": self.tool_name, "arguments": code}
        return {"id": f"call_{index}", "type": "function", "function": function}

    def _note_logprobs(self, event: TokenOutput) -> None:
        if event.token is None or event.logprob is None or event.token in self._specials:
            return
        entry = self._entry(event.token, event.logprob)
        entry["top_logprobs"] = [self._entry(*pair) for pair in event.top_logprobs]
        self._logprobs.append(entry)

    def _entry(self, token: int, logprob: float) -> dict:
        data = self.tokenizer.decode_bytes([token])
        text = data.decode("utf-8", errors="replace")
        return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": list(data)}

    def take_logprobs(self) -> list[dict]:
        """Those of the text's tokens since the last call."""
        taken, self._logprobs = self._logprobs, []
        return taken

    @property
    def text(self) -> str:
        return "".join(part["text"] for part in self.parts if part["type"] == "text")

    def timing(self) -> dict:
        """Seconds to the first token, and tokens per second after it; None where none came."""
        if self.first is None:
            return {"type": "timing", "tokens_per_second": None, "time_to_first_token": None}
        seconds = self.last - self.first
        speed = (self.num_tokens - 1) / seconds if seconds > 0 else None
        first = self.first - self.submitted
        return {"type": "timing", "tokens_per_second": speed, "time_to_first_token": first}

    def message(self) -> dict:
        """The answer as one message; where a tool was used, with the order of its parts."""
        calls = [part["text"] for part in self.parts if part["type"] == "python"]
        message = {"role": "assistant", "content": self.text}
        if calls:
            message["tool_calls"] = [self._call(i, code) for i, code in enumerate(calls)]
            message["nanochat"] = {"parts": self.parts}
        return message


def usage(prompt_tokens: int, choices: Sequence[Choice]) -> dict:
    """Tokens read and written: prompts once, however many answers they got.

    Example: usage(5, [a reply of 3 tokens])["total_tokens"] == 8
    """
    written = sum(reply.num_tokens for reply in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
    }
