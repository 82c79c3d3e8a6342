"""A page of facts, tables, figures and samples, in its two forms: one HTML file, and Markdown."""

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape


@dataclass(frozen=True)
class Fact:
    """A headline figure: "0.2219", of "CORE", "± 0.003"."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Cells are texts; a row's first cell names it. Empty cells and columns were not measured."""

    caption: str
    headers: list[str]
    rows: list[list[str]]
    note: str = ""
    numbers: bool = True  # all columns but the first hold figures: aligned to the right

    def shown(self) -> "Table":
        """Without the columns that are empty in every row."""
        keep = [i for i in range(len(self.headers)) if i == 0 or any(row[i] for row in self.rows)]
        rows = [[row[i] for i in keep] for row in self.rows]
        headers = [self.headers[i] for i in keep]
        return Table(self.caption, headers, rows, self.note, self.numbers)


@dataclass(frozen=True)
class Figure:
    svg: str
    title: str
    wide: bool = False


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Sample:
    """What a model was given and what it said; verdict: "right", "wrong" or ""."""

    prompt: str
    completion: str
    verdict: str = ""


@dataclass(frozen=True)
class Section:
    title: str
    blocks: list = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: str
    facts: list[Fact]
    sections: list[Section]
    footer: str


# ---------------------------------------------------------------- Markdown


def markdown_cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def table_to_markdown(table: Table) -> str:
    table = table.shown()
    lines = [f"**{markdown_cell(table.caption)}**", ""] if table.caption else []
    lines.append("| " + " | ".join(map(markdown_cell, table.headers)) + " |")
    lines.append("|---|" + ("---:|" if table.numbers else "---|") * (len(table.headers) - 1))
    lines += ["| " + " | ".join(map(markdown_cell, row)) + " |" for row in table.rows]
    return "\n".join(lines + ["", table.note] * bool(table.note))


def fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def block_to_markdown(block) -> str:
    if isinstance(block, Table):
        return table_to_markdown(block)
    if isinstance(block, Code):
        return fenced(block.text)
    if isinstance(block, Sample):
        verdict = f"\n[{block.verdict}]" if block.verdict else ""
        return fenced(f"{block.prompt}\n→ {block.completion}{verdict}")
    return "" if isinstance(block, Figure) else block.text


def to_markdown(page: Page) -> str:
    """The page without its figures, which the HTML form holds."""
    parts = [f"# {page.title}", page.subtitle]
    if page.facts:
        rows = [[f.label, f.value, f.note] for f in page.facts]
        parts.append(table_to_markdown(Table("", ["", "", " "], rows, numbers=False)))
    for section in page.sections:
        texts = [text for text in map(block_to_markdown, section.blocks) if text]
        if texts:
            parts += [f"## {section.title}", *texts]
    return "\n\n".join([*parts, page.footer]) + "\n"


# ---------------------------------------------------------------- HTML


def table_to_html(table: Table) -> str:
    table = table.shown()
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in table.headers)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0]).replace("_", "_<wbr>")}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    kind = "numbers" if table.numbers else "words many" if len(table.headers) > 2 else "words"
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    # subtle: what scrolls can be reached by keyboard only with a tabindex.
    return (
        f'<div class="scroll" role="region" aria-label="{escape(table.caption or "table")}" '
        f'tabindex="0"><table class="{kind}">{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def figure_to_html(figure: Figure) -> str:
    kind = ' class="wide"' if figure.wide else ""
    return f"<figure{kind}><figcaption>{escape(figure.title)}</figcaption>{figure.svg}</figure>"


def sample_to_html(sample: Sample) -> str:
    verdict = f' <span class="{sample.verdict}">{sample.verdict}</span>' if sample.verdict else ""
    return (
        f'<div class="sample"><div class="prompt">{escape(sample.prompt)}</div>'
        f'<div class="said">{escape(sample.completion)}{verdict}</div></div>'
    )


def blocks_to_html(blocks: list) -> str:
    """The blocks in order; neighbouring figures share a grid."""
    forms: dict[type, Callable] = {
        Table: table_to_html,
        Figure: figure_to_html,
        Sample: sample_to_html,
        Code: lambda block: f"<pre>{escape(block.text)}</pre>",
        Text: lambda block: f"<p>{escape(block.text)}</p>",
    }
    parts, before = [], None
    for block in blocks:
        if isinstance(block, Figure) and not isinstance(before, Figure):
            parts.append('<div class="figures">')
        if isinstance(before, Figure) and not isinstance(block, Figure):
            parts.append("</div>")
        parts.append(forms[type(block)](block))
        before = block
    return "".join([*parts, "</div>" if isinstance(before, Figure) else ""])


def to_html(page: Page) -> str:
    """One file that asks for nothing else: style and figures are in it, and it has no script."""
    sections = [s for s in page.sections if s.blocks]
    ids = {s.title: s.title.lower().replace(" ", "-").replace(",", "") for s in sections}
    links = "".join(f'<a href="#{ids[s.title]}">{escape(s.title)}</a>' for s in sections)
    facts = "".join(
        f"<div><dt>{escape(f.label)}</dt><dd>{escape(f.value)}"
        + (f"<small>{escape(f.note)}</small>" if f.note else "")
        + "</dd></div>"
        for f in page.facts
    )
    body = "".join(
        f'<section id="{ids[s.title]}"><h2>{escape(s.title)}</h2>'
        f"{blocks_to_html(s.blocks)}</section>"
        for s in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(page.title)}</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{escape(page.title)}</h1><p>{escape(page.subtitle)}</p></header>"
        f'<main><dl class="facts">{facts}</dl><nav aria-label="Sections">{links}</nav>{body}</main>'
        f"<footer><p>{escape(page.footer)}</p></footer></body></html>\n"
    )


STYLE = """
:root { color-scheme: light dark;
  --paper: #fcfbf9; --raised: #ffffff; --ink: #1d1c1a; --muted: #66625b; --line: #e2ded6;
  --c1: #1f5fa8; --c2: #b45309; --c3: #17795a; --c4: #7c3f9e; --good: #17795a; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #141517; --raised: #1c1e21; --ink: #ecebe8; --muted: #a3a099; --line: #34373c;
  --c1: #7ab3f2; --c2: #f0a860; --c3: #62cfa5; --c4: #cb9bec; --good: #62cfa5; --bad: #ff8f85; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2.5rem max(1rem, env(safe-area-inset-left)) 3rem; max-width: 68rem;
  background: var(--paper); color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { margin: 0; font-size: clamp(1.8rem, 5vw, 2.6rem); line-height: 1.15; letter-spacing: -.02em; }
header p { margin: .5rem 0 0; color: var(--muted); max-width: 46rem; }
h2 { margin: 3rem 0 .9rem; font-size: 1.3rem; letter-spacing: -.01em; }
section { scroll-margin-top: 1rem; }
p { max-width: 46rem; }
.note, figcaption, footer { color: var(--muted); font-size: .875rem; }
.note { margin: .5rem 0 1.4rem; }
.facts { display: flex; flex-wrap: wrap; gap: 1px;
  margin: 1.8rem 0 1.4rem; border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
  background: var(--line); }
.facts > div { flex: 1 1 9.5rem; background: var(--raised); padding: .8rem 1rem .75rem; }
dt { color: var(--muted); font-size: .8rem; }
dd { margin: .1rem 0 0; font-size: 1.4rem; font-weight: 600; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums; }
dd small { display: block; font-size: .78rem; font-weight: 400; letter-spacing: 0;
  color: var(--muted); line-height: 1.35; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; font-size: .92rem; }
a { color: var(--c1); text-underline-offset: .2em; }
a:focus-visible, .scroll:focus-visible { outline: 2px solid var(--c1); outline-offset: 2px; }
/* What can be scrolled to the side shows a shadow at that side. */
.scroll { overflow-x: auto; margin: 0 0 .4rem; background:
  linear-gradient(to right, var(--paper) 40%, transparent) 0 / 2rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 40%, transparent) 100% / 2rem 100% no-repeat local,
  linear-gradient(to left, var(--line), transparent) 100% / .7rem 100% no-repeat scroll; }
.scroll + .scroll, .note + .scroll { margin-top: 1.6rem; }
table { border-collapse: collapse; min-width: min(100%, 30rem); font-size: .92rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); font-size: .875rem; padding: 0 0 .4rem; }
th, td { padding: .38rem 1.1rem .38rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 500; font-size: .82rem; vertical-align: bottom;
  border-bottom-color: var(--muted); }
tbody th { font-weight: 500; }
.numbers tbody th { position: sticky; left: 0; background: var(--paper); white-space: nowrap; }
.words.many { min-width: 36rem; }
.numbers td, .numbers thead th:not(:first-child) { text-align: right; white-space: nowrap; }
.words td { overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1.2rem 2rem; margin: .4rem 0 1.6rem; }
figure { margin: 0; min-width: 0; max-width: 34rem; }
figure.wide { max-width: 44rem; }
figcaption { margin: 0 0 .35rem; color: var(--ink); }
svg { display: block; width: 100%; height: auto; color: var(--ink); }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
pre, .sample { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .82rem;
  white-space: pre-wrap; overflow-wrap: anywhere; background: var(--raised); line-height: 1.5;
  border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; margin: .6rem 0; }
.prompt { color: var(--muted); }
.right, .wrong { font-family: system-ui, sans-serif; font-size: .75rem; border: 1px solid;
  border-radius: 99px; padding: 0 .5em; margin-left: .4em; white-space: nowrap; }
.right { color: var(--good); } .wrong { color: var(--bad); }
footer { margin-top: 3.5rem; border-top: 1px solid var(--line); padding-top: .6rem; }
@media (max-width: 40rem) { .numbers tbody th { white-space: normal; } }
@media print { :root { color-scheme: light; } nav { display: none; } body { max-width: none; }
  section, figure, tr, .sample { break-inside: avoid; } .scroll { overflow: visible; } }
"""
