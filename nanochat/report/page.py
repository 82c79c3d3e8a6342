"""Tables, figures and samples as one HTML file (page.html), as Markdown, and on a terminal."""

from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from rich.console import Console
from rich.table import Table as RichTable

from nanochat.common import rank_and_world


@dataclass
class Table:
    """Cells are texts; a row's first cell names it. Columns without a single value are left out."""

    caption: str
    headers: list[str]
    rows: list[list[str]]
    note: str = ""
    numbers: bool = True  # all columns but the first hold figures: aligned to the right

    def __post_init__(self):
        kept = [i for i in range(len(self.headers)) if i == 0 or any(row[i] for row in self.rows)]
        self.headers = [self.headers[i] for i in kept]
        self.rows = [[row[i] for i in kept] for row in self.rows]


@dataclass(frozen=True)
class Figure:
    title: str
    svg: str


@dataclass(frozen=True)
class Sample:
    """What a model was given and what it answered; verdict: "right", "wrong" or ""."""

    prompt: str
    completion: str
    verdict: str = ""


@dataclass(frozen=True)
class Section:
    """Blocks: text, Table, Sample, or a list of figures side by side."""

    title: str
    blocks: list = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: str
    facts: list[tuple[str, str, str]]  # headline figures: ("CORE", "0.2219", "± 0.003")
    sections: list[Section]
    footer: str


def render_template(file: str, **values) -> str:
    """A template of this folder, filled in; what goes into HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(file).render(**values)


def to_html(page: Page) -> str:
    """One file that asks for nothing else: style and figures are in it, and it has no script."""
    return render_template("page.html", page=page)


def to_markdown(page: Page) -> str:
    """The page without its figures, which only the HTML form has."""
    facts = Table("", ["", "", " "], [list(fact) for fact in page.facts], numbers=False)
    parts = [f"# {page.title}", page.subtitle, block_to_markdown(facts)]
    return "\n\n".join([*parts, sections_to_markdown(page.sections), page.footer]) + "\n"


def sections_to_markdown(sections: list[Section]) -> str:
    parts = []
    for section in sections:
        if texts := [text for text in map(block_to_markdown, section.blocks) if text]:
            parts += [f"## {section.title}", *texts]
    return "\n\n".join(parts)


def block_to_markdown(block) -> str:
    match block:
        case str():
            return block
        case Sample(prompt, completion, verdict):
            text, fence = f"{prompt}\n→ {completion}" + (f"\n[{verdict}]" if verdict else ""), "```"
            while fence in text:
                fence += "`"
            return f"{fence}text\n{text}\n{fence}"
        case Table(caption, headers, rows, note, numbers):
            align = ["---", *["---:" if numbers else "---"] * (len(headers) - 1)]
            lines = ["| " + " | ".join(map(markdown_cell, row)) + " |" for row in [headers, *rows]]
            lines.insert(1, "|" + "|".join(align) + "|")
            caption = f"**{markdown_cell(caption)}**" if caption else ""
            return "\n\n".join(filter(None, (caption, "\n".join(lines), note)))
    return ""  # figures


def print_table(table: Table) -> None:
    """On the terminal, by rank 0."""
    if rank_and_world()[0] == 0:
        shown = RichTable(*table.headers, title=table.caption, title_justify="left")
        for row in table.rows:
            shown.add_row(*row)
        Console(width=118).print(shown)


def markdown_cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
