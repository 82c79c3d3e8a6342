"""Reads the engine's events of one answer: its parts, log-probabilities, timing, finish reason."""

import time
from dataclasses import dataclass, field
from itertools import accumulate

from nanochat.conversation import PART_MARKS
from nanochat.engine import TokenOutput
from nanochat.tokenizer import Tokenizer

MIN_LOGPROB = -9999.0  # JSON has no -Infinity


@dataclass
class Choice:
    """One answer as it comes; `push` takes its next event.

    chat: whether tool calls are parts of their own. parts: as in conversation.py. num_tokens: with
    tool results. finish: "stop" or "length".
    """

    tokenizer: Tokenizer
    chat: bool = True
    parts: list[dict] = field(default_factory=list)
    num_tokens: int = 0
    finish: str | None = None
    submitted: float = field(default_factory=time.monotonic)
    first_token: float | None = None  # when it came
    last_token: float | None = None

    def __post_init__(self):
        special = self.tokenizer.special
        self._ends = {special(end) for _, end, _ in PART_MARKS.values() if end}
        self._without_logprob = {None, *self.tokenizer.special_ids.values()}
        self._open: dict | None = None  # a tool call or result that is not complete
        self._logprobs: list[dict] = []
        self._offset = 0  # characters of the tokens whose log-probabilities were taken

    def push(self, event: TokenOutput) -> dict | None:
        """The part {"type", "text"} that is new: text as it comes, tool calls and results whole."""
        if event.token is not None:
            self.num_tokens += 1
            self.last_token = time.monotonic()
            self.first_token = self.first_token or self.last_token
        if event.finish is not None:
            self.finish = "length" if event.finish == "cancelled" else event.finish
        if self.chat and event.kind != "text":
            self._open = self._open or {"type": event.kind, "text": ""}
            self._open["text"] += event.text
            return self.end() if event.token in self._ends or self.finish else None
        if event.logprob is not None and event.token not in self._without_logprob:
            entry = self._logprob(event.token, event.logprob)
            entry["top_logprobs"] = [self._logprob(*pair) for pair in event.top_logprobs]
            self._logprobs.append(entry)
        if not event.text:
            return None
        if not self.parts or self.parts[-1]["type"] != "text":
            self.parts.append({"type": "text", "text": ""})
        self.parts[-1]["text"] += event.text
        return {"type": "text", "text": event.text}

    def end(self, finish: str | None = None) -> dict | None:
        """The tool call or result that was under way; `finish` ends the answer here."""
        self.finish = finish or self.finish
        part, self._open = self._open, None
        if part is not None:
            self.parts.append(part)
        return part

    def _logprob(self, token: int, logprob: float) -> dict:
        data = self.tokenizer.decode_bytes([token])
        text = data.decode("utf-8", errors="replace")
        return {"token": text, "logprob": max(logprob, MIN_LOGPROB), "bytes": list(data)}

    def take_logprobs(self) -> dict | None:
        """Those of the text's tokens since the last call, as OpenAI's API has them."""
        entries, self._logprobs = self._logprobs, []
        if not entries:
            return None
        if self.chat:
            return {"content": entries, "refusal": None}
        tokens = [entry["token"] for entry in entries]
        *offsets, self._offset = accumulate(map(len, tokens), initial=self._offset)
        return {
            "tokens": tokens,
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [
                {top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in entries
            ],
            "text_offset": offsets,
        }

    @property
    def text(self) -> str:
        return "".join(part["text"] for part in self.parts if part["type"] == "text")

    @property
    def timing(self) -> dict:
        """Seconds to the first token, tokens per second after it; None where there are none."""
        first, seconds = self.first_token, (self.last_token or 0) - (self.first_token or 0)
        return {
            "type": "timing",
            "tokens_per_second": (self.num_tokens - 1) / seconds if seconds > 0 else None,
            "time_to_first_token": None if first is None else first - self.submitted,
        }
