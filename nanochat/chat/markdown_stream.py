"""Markdown shown on a terminal while it is still being written.

Blocks that are done (a paragraph, a closed fence) are printed for good; the one under way is drawn
again and again by rich, and cut to the screen, so that nothing above it ever has to be redrawn.
"""

import re
import time

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import SegmentLines
from rich.text import Text

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})", re.MULTILINE)


def split_done(text: str) -> tuple[str, str]:
    """(blocks that are done, the one under way): parted at the last blank line outside of fences.

    Example: split_done("one\\n\\ntwo") == ("one\\n\\n", "two")
    """
    fence, done, place = "", 0, 0
    for line in text.splitlines(keepends=True):
        place += len(line)
        if found := FENCE.match(line):
            mark = found.group(1)
            if not fence:
                fence = mark
            elif mark[0] == fence[0] and len(mark) >= len(fence) and line.strip() == mark:
                fence = ""
        elif not fence and not line.strip() and line.endswith("\n"):
            done = place
    return text[:done], text[done:]


class MarkdownStream:
    """Shows one answer. `text` adds to it, `call` and `result` show a tool's use as
    `[python] 37*12 = 444`, `end` leaves it on the screen. Drawn again after `every` seconds."""

    def __init__(self, console: Console | None = None, every: float = 0.05):
        self.every, self._drawn = every, 0.0  # seconds between two drawings, which take time
        self.console = console or Console(highlight=False)
        self._pending = ""  # Markdown that is not printed for good
        self._call: Text | None = None  # a tool call that has no result yet
        self._printed = False
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self._live.start()

    def text(self, text: str) -> None:
        done, self._pending = split_done(self._pending + text)
        if done.strip():
            self._print(Markdown(done))
        if time.monotonic() - self._drawn > self.every:
            self._live.update(self._tail(), refresh=True)
            self._drawn = time.monotonic()

    def _tail(self) -> SegmentLines:
        """What is under way, its end if the screen cannot hold it all."""
        lines = self.console.render_lines(Markdown(self._pending), pad=False)
        return SegmentLines(lines[-(self.console.height - 2) :], new_lines=True)

    def call(self, code: str) -> None:
        self._flush()
        self._call = Text(f"[python] {code}", "dim")
        self._live.update(self._call, refresh=True)  # in sight while it runs

    def result(self, text: str) -> None:
        call, self._call = self._call or Text("", "dim"), None
        self._print(call.append(f" = {text}"))

    def end(self, stopped: bool) -> None:
        self._flush()
        self._live.stop()
        if stopped:
            self.console.print(Text("(stopped)", "dim"))

    def _flush(self) -> None:
        """Prints what is under way for good."""
        pending, self._pending = self._pending, ""
        call, self._call = self._call, None
        for what in (Markdown(pending) if pending.strip() else None, call):
            if what is not None:
                self._print(what)
        self._live.update(Text(""), refresh=True)

    def _print(self, what: Markdown | Text) -> None:
        self._live.update(Text(""), refresh=True)
        if self._printed and isinstance(what, Markdown):
            self.console.print()  # blocks stand apart
        self.console.print(what)
        self._printed = True
