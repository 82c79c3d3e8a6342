"""Markdown shown on a terminal while it is being written.

Complete blocks are printed for good; rich redraws the unfinished one, cut to the screen, so that
nothing above it has to be redrawn.
"""

import re
import time

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import SegmentLines
from rich.text import Text

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
REDRAW_SECONDS = 0.05  # between two drawings, which take time


def split_complete(text: str) -> tuple[str, str]:
    """(complete blocks, the rest), split at the last blank line outside of fences."""
    fence, end, place = "", 0, 0
    for line in text.splitlines(keepends=True):
        place += len(line)
        if match := FENCE.match(line):
            mark = match.group(1)
            if not fence:
                fence = mark
            elif mark.startswith(fence) and line.strip() == mark:
                fence = ""
        elif not fence and not line.strip() and line.endswith("\n"):
            end = place
    return text[:end], text[end:]


class MarkdownStream:
    """Shows one answer; a tool's use becomes one line like `[python] 37*12 = 444`."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(highlight=False)
        self._pending = ""  # Markdown that is not printed for good
        self._call: Text | None = None  # a tool call that has no result yet
        self._printed = False
        self._drawn = 0.0  # when
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self._live.start()

    def part(self, kind: str, text: str) -> None:
        if kind == "python":
            self._print_pending()
            self._call = Text(f"[python] {text}", "dim")
            self._live.update(self._call, refresh=True)  # in sight while it runs
        elif kind == "python_output":
            call, self._call = self._call or Text("", "dim"), None
            self._print(call.append(f" = {text}"))
        else:
            complete, self._pending = split_complete(self._pending + text)
            if complete.strip():
                self._print(Markdown(complete))
            if time.monotonic() - self._drawn > REDRAW_SECONDS:
                lines = self.console.render_lines(Markdown(self._pending), pad=False)
                visible = lines[-(self.console.height - 2) :]
                self._live.update(SegmentLines(visible, new_lines=True), refresh=True)
                self._drawn = time.monotonic()

    def end(self, stopped: bool) -> None:
        self._print_pending()
        self._live.stop()
        if stopped:
            self.console.print(Text("(stopped)", "dim"))

    def _print_pending(self) -> None:
        if self._pending.strip():
            self._print(Markdown(self._pending))
        if self._call is not None:
            self._print(self._call)
        self._pending, self._call = "", None

    def _print(self, block: Markdown | Text) -> None:
        self._live.update(Text(""), refresh=True)
        if self._printed and isinstance(block, Markdown):
            self.console.print()  # blocks stand apart
        self.console.print(block)
        self._printed = True
