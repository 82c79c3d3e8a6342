"""The report of a run: its measured figures as report.html and report.md, and its model card.

What was not measured is left out. Derived figures are run.py's, by formulas.py.
"""

import json
import shlex
import time
from dataclasses import asdict
from pathlib import Path

from nanochat.common import print0, rank_and_world
from nanochat.files import base_dir, write_atomic
from nanochat.report.figures import (
    format_compact,
    format_decimal,
    format_duration,
    format_energy,
    format_flops,
    format_money,
    format_percent,
    maybe,
)
from nanochat.report.formulas import Assumptions
from nanochat.report.model_card import model_card
from nanochat.report.page import Code, Fact, Page, Section, Table, Text, to_html, to_markdown
from nanochat.report.results import chat_section, core_section, samples_section, tokenizer_section
from nanochat.report.run import StageRecord, Totals, parameters
from nanochat.report.run_records import (
    ASSUMPTIONS,
    lineage,
    newest_checkpoint,
    report_folder,
    stored_assumptions,
)
from nanochat.report.training import cost_section, curves, parameter_table, stage_table

CARD = "model_card.md"
NAMES = {"base": "pretraining", "mid": "midtraining", "sft": "fine-tuning"}
NAMES |= {"rl": "reinforcement learning"}


def write_report(tag: str | None = None, given: Assumptions | None = None) -> Path:
    """Writes report.html, report.md and model_card.md of a run (default: the newest), and returns
    their folder. What is assumed is kept there, for the next time."""
    newest = newest_checkpoint(tag)
    folder = report_folder(newest.parent.name)
    assumed = stored_assumptions(newest.parent.name, given)
    stages = lineage(newest)
    page = make_page(stages, assumed)
    write_atomic(folder / ASSUMPTIONS, json.dumps(asdict(assumed), indent=1) + "\n")
    write_atomic(folder / "report.html", to_html(page))
    write_atomic(folder / "report.md", to_markdown(page))
    write_atomic(folder / CARD, model_card(stages, assumed))
    return folder


def remake(tag: str) -> None:
    """write_report on rank 0. subtle: whatever goes wrong becomes a printed line, because neither a
    finished training nor an evaluation may fail for it."""
    if rank_and_world()[0] != 0:
        return
    try:
        print0(f"report: {write_report(tag) / 'report.html'}")
    except Exception as error:
        print0(f"the report of {tag} was not made: {type(error).__name__}: {error}")


def print_tables(tag: str) -> None:
    """The tables of stages and of chat tasks, for the terminal; needs no file to be written."""
    from rich.console import Console
    from rich.table import Table as RichTable

    stages, console = lineage(newest_checkpoint(tag)), Console(width=118)
    console.print(f"[bold]{tag}[/bold]  {base_dir()}", highlight=False)
    for table in [stage_table(stages), *chat_section(stages).blocks]:
        table = table.shown()
        shown = RichTable(*table.headers)
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)


def make_page(stages: list[StageRecord], assumed: Assumptions) -> Page:
    last, totals = stages[-1], Totals(stages, assumed)
    source = stages[0].run.get("data", {}).get("source")
    text = Path(source).name if source else ""
    done = [NAMES[stage.name] for stage in stages]
    subtitle = " and ".join([", ".join(done[:-1]), done[-1]] if len(done) > 1 else done)
    subtitle = subtitle.capitalize() + (f", from raw text: {text}" if text else "")
    subtitle += f". Trained on {last.device}." if last.device else "."
    sections = [
        Section("Training", [stage_table(stages)] if any(s.steps for s in stages) else []),
        Section("Curves", [figure for stage in stages for figure in curves(stage)]),
        core_section(stages),
        chat_section(stages),
        tokenizer_section(base_dir() / "tokenizer", last.run.get("tokenizer_fingerprint")),
        samples_section(stages),
        cost_section(stages, totals, assumed),
        provenance_section(stages),
    ]
    footer = f"Made by nanochat on {time.strftime('%d %B %Y')} from the run's own records."
    return Page(f"nanochat {last.tag}", subtitle, headline(stages, totals), sections, footer)


def headline(stages: list[StageRecord], totals: Totals) -> list[Fact]:
    """The figures on top: those that there are."""
    base, last = stages[0], stages[-1]
    sizes = parameters(last.config) if last.config else {}
    shape = f"{last.config.get('num_hidden_layers')} layers, width {last.config.get('hidden_size')}"
    core = next((s for s in reversed(stages) if "core" in s.evaluations), None)
    chat = next((s for s in reversed(stages) if "chatcore" in s.evaluations), None)
    hours = "first step to last" if totals.wall else "in training steps"
    bits = base.evaluations.get("bpb/val", base.val_bpb) if base.name == "base" else None
    facts = [
        ("Parameters", maybe(format_compact, sum(sizes.values()) or None), shape),
        ("Tokens", maybe(format_compact, totals.tokens or None), "through the model, all stages"),
        ("Training FLOPs", maybe(format_flops, totals.flops), ""),
        ("Time", maybe(format_duration, totals.hours), hours),
        ("Cost", maybe(format_money, totals.cost), maybe(
            lambda p: f"at ${p:g} an hour", totals.assumed.price_per_hour)),
        ("Energy", maybe(format_energy, totals.kwh),
         "measured" if totals.measured else "estimated"),
        ("MFU", maybe(format_percent, base.mfu), f"median step of {base.name}"),
        ("Bits per byte", maybe(format_decimal, bits), "base, validation text"),
        ("CORE", core and format_decimal(core.evaluations["core"]), core and (
            maybe(lambda e: f"± {e:.4f}, {core.name}", core.core_stderr()) or core.name)),
        ("ChatCORE", chat and format_decimal(chat.evaluations["chatcore"]), chat and (
            maybe(lambda e: f"± {e:.4f}, {chat.name}", chat.chatcore_stderr()) or chat.name)),
    ]  # fmt: skip
    return [Fact(*fact) for fact in facts if fact[1]]


def provenance_section(stages: list[StageRecord]) -> Section:
    """Hardware, versions, commit, data and command lines: what it takes to do it again."""
    section = Section("How it was made")
    if stages[-1].config:
        section.blocks.append(parameter_table(stages[-1].config))
    columns = [machine(stage) for stage in stages]
    names = dict.fromkeys(name for column in columns for name in column)
    headers = ["", *(stage.name for stage in stages)]
    if all(column == columns[0] for column in columns):
        columns, headers = columns[:1], ["", "all stages"]
    rows = [[name, *(column.get(name, "") for column in columns)] for name in names]
    section.blocks.append(Table("Hardware and software", headers, rows, numbers=False))
    data = [
        [s.name, describe(s.run.get("data", {})), s.run.get("data_fingerprint", "")[:16]]
        for s in stages
    ]
    section.blocks.append(Table("Data", ["stage", "what", "fingerprint"], data, numbers=False))
    commands = dict.fromkeys(shlex.join(s["command"]) for st in stages for s in st.sessions)
    if commands:
        section.blocks.extend([Text("Command lines, in order:"), Code("\n".join(commands))])
    return section


def describe(data: dict) -> str:
    """Example: describe({"source": "books", "tokens": 1200}) == "source books, tokens 1,200"."""
    items = ((k, f"{v:,}" if isinstance(v, int) else str(v)) for k, v in data.items())
    return ", ".join(f"{name} {value}" for name, value in items)


def machine(stage: StageRecord) -> dict[str, str]:
    """What the stage's last session ran on and with."""
    last = stage.sessions[-1] if stage.sessions else {}
    found = {"device": stage.device, "compute dtype": last.get("dtype")}
    if last:
        peak = f"{last['peak_flops'] / 1e12:.4g} TFLOP/s ({last['peak_source']})"
        found |= {"peak, all devices": peak, "nodes": str(last["nodes"]), "CUDA": last["cuda"]}
    found |= stage.run.get("versions", {})
    found["commit"] = (stage.run.get("git_commit") or "")[:20]
    return {name: str(value) for name, value in found.items() if value}
