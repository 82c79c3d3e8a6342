"""The report of a run as HTML and Markdown, and its model card: what was measured, nothing else."""

import json
import time
from dataclasses import asdict
from pathlib import Path

from nanochat.common import print0, rank_and_world
from nanochat.files import base_dir, write_atomic
from nanochat.report.evaluations import (
    chat_tables,
    core_section,
    samples_section,
    tokenizer_section,
)
from nanochat.report.model_card import model_card
from nanochat.report.page import Page, Section, to_html, to_markdown
from nanochat.report.reinforcement import rl_section
from nanochat.report.run import (
    ASSUMPTIONS,
    Assumptions,
    StageRecord,
    lineage,
    newest_checkpoint,
    report_folder,
)
from nanochat.report.training import (
    cost_section,
    curves,
    headline,
    provenance_section,
    stage_tables,
)

CARD = "model_card.md"
NAMES = {"imported": "an imported model", "base": "pretraining", "mid": "midtraining"}
NAMES |= {"sft": "fine-tuning", "rl": "reinforcement learning"}


def write_report(tag: str | None = None, given: Assumptions | None = None) -> Path:
    """Writes report.html, report.md and model_card.md of a run (default: the newest), and returns
    their folder. What is assumed is kept there, for the next time."""
    newest = newest_checkpoint(tag)
    folder = report_folder(newest.parent.name)
    stages = lineage(newest, given)
    page = make_page(stages)
    write_atomic(folder / ASSUMPTIONS, json.dumps(asdict(stages[-1].assumed), indent=1) + "\n")
    write_atomic(folder / "report.html", to_html(page))
    write_atomic(folder / "report.md", to_markdown(page))
    write_atomic(folder / CARD, model_card(stages))
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


def make_page(stages: list[StageRecord]) -> Page:
    last = stages[-1]
    source = stages[0].run.get("data", {}).get("source")
    subtitle = ", then ".join(NAMES[stage.name] for stage in stages).capitalize()
    subtitle += f", from raw text: {Path(source).name}." if source else "."
    subtitle += f" Trained on {last.device}." if last.device else ""
    figures = [figure for stage in stages for figure in curves(stage)]
    sections = [
        Section("Training", stage_tables(stages)),
        Section("Curves", [figures] if figures else []),
        core_section(stages, figures=True),
        Section("Chat tasks", chat_tables({stage.name: stage.evaluations for stage in stages})),
        rl_section(stages, figures=True),
        tokenizer_section(base_dir() / "tokenizer", last.run.get("tokenizer_fingerprint")),
        samples_section(stages),
        cost_section(stages),
        provenance_section(stages),
    ]
    sections = [section for section in sections if section.blocks]
    footer = f"Made by nanochat on {time.strftime('%d %B %Y')} from the run's own records."
    return Page(f"nanochat {last.tag}", subtitle, headline(stages), sections, footer)
