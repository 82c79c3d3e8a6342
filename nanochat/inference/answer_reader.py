"""Reads an answer as its ids come: whole characters, stop strings, tool calls."""

import codecs
from collections.abc import Sequence

from nanochat.conversation import PART_MARKS


class AnswerReader:
    """Turns the ids of an answer into text, one by one.

    push(token) returns the whole characters that the token releases; `kind` is the type of part
    that the next text belongs to: "text", "python" or "python_output". After the end of a tool
    call, `call` is its text, else None. Text that may begin a stop string is held back; once one is
    complete in a part of kind "text", `stopped` is true, and nothing more is released.

    Example: with stop_strings ("END",), "a", "E", "x", "EN", "D" release "a", "", "Ex", "", "".
    """

    def __init__(self, tokenizer, stop_strings: Sequence[str] = ()):
        self.kind, self.call, self.stopped = "text", None, False
        self._stop_strings = stop_strings
        self._held = ""
        self._part = ""  # released since the last mark
        self._decode_bytes = tokenizer.decode_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._kind_after: dict[int, str] = {}
        for kind, (start, end, _) in PART_MARKS.items():
            if start:
                self._kind_after[tokenizer.special(start)] = kind
                self._kind_after[tokenizer.special(end)] = "text"
        self._call_end = tokenizer.special("<|python_end|>")

    def push(self, token: int) -> str:
        self.call = None
        if token not in self._kind_after:
            text = self._release(self._utf8.decode(self._decode_bytes([token])))
            self._part += text
            return text
        text = self.flush()
        if self.kind == "python" and token == self._call_end:
            self.call = self._part + text
        self.kind, self._part = self._kind_after[token], ""
        return text

    def flush(self) -> str:
        """What was held back, and U+FFFD for an unfinished character."""
        text = self._release(self._utf8.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        """What of the held text and `text` can be released now."""
        if self.stopped:
            return ""
        if not self._stop_strings or self.kind != "text":
            return text
        text = self._held + text
        places = [place for stop in self._stop_strings if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        end = len(text) - max(beginning_at_end(text, stop) for stop in self._stop_strings)
        self._held = text[end:]
        return text[:end]


def beginning_at_end(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with.

    Example: beginning_at_end("an EN", "END") == 2
    """
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
