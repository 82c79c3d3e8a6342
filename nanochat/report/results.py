"""The report's sections on what was evaluated: tokenizer, CORE, chat tasks, controls, samples."""

import json
import re
from pathlib import Path

from nanochat.report import gpt2_core
from nanochat.report.figures import format_decimal, format_percent, maybe
from nanochat.report.formulas import baseline, centred_stderr
from nanochat.report.page import Figure, Sample, Section, Table, Text
from nanochat.report.plots import Reference, bars_svg
from nanochat.report.run import StageRecord, read_json

TOKENIZER_RECORD = "tok_eval.json"  # beside tokenizer.json, written by scripts/tok_eval.py
ANSWERS_A_TASK, LONGEST_SAMPLE = 2, 700
GPT2_SHOWN = ("GPT-2 124M", "GPT-2 1.5B")


def names_after(prefix: str, figures: dict) -> list[str]:
    """Example: names_after("core/", {"core/piqa": 0.1, "core": 0.2}) == ["piqa"]"""
    return [key.removeprefix(prefix) for key in figures if key.startswith(prefix)]


def readable(task: str) -> str:
    """Example: readable("bigbench_cs_algorithms") == "cs algorithms"."""
    return task.removeprefix("bigbench_").replace("_", " ")


# ---------------------------------------------------------------- tokenizer


def tokenizer_section(folder: Path, fingerprint: str | None) -> Section:
    """Characters per token by kind of text, if they were measured with the run's own tokenizer."""
    record = read_json(folder / TOKENIZER_RECORD)
    mine = record and record["fingerprint"] == fingerprint
    return Section("Tokenizer", [tokenizer_table(record)] if mine else [])


def tokenizer_table(record: dict) -> Table:
    """record: "vocab_size", and "texts" with "kind", "characters", and "tokens" by tokenizer, ours
    first. Example: 300 characters that are 100 tokens of ours and 110 of another's: ours stands for
    3.000 characters a token, theirs for 2.727; +10.0%."""
    others = list(record["texts"][0]["tokens"])[1:]
    rows = []
    for text in record["texts"]:
        ours, *theirs = text["tokens"].values()
        row = [text["kind"], f"{text['characters']:,}", f"{text['characters'] / ours:.3f}"]
        for count in theirs:
            row += [f"{text['characters'] / count:.3f}", f"{count / ours - 1:+.1%}"]
        rows.append(row)
    headers = ["text", "characters", f"ours ({record['vocab_size']:,} ids)"]
    for other in others:
        headers += [other, f"against {other}"]
    note = "More is better: +10% means that a token of ours stands for 10% more text."
    return Table("Characters per token", headers, rows, note if others else "")


# ---------------------------------------------------------------- CORE


def core_section(stages: list[StageRecord]) -> Section:
    """Bars and a table for each stage that CORE was measured of."""
    section = Section("CORE")
    for stage in stages:
        measured = stage.evaluations
        tasks = [n for n in names_after("core/", measured) if f"core_accuracy/{n}" in measured]
        if "core" not in measured or not tasks:
            continue
        tasks.sort(key=lambda name: measured[f"core/{name}"], reverse=True)
        section.blocks.extend(
            [core_figure(stage, measured, tasks), core_table(stage, measured, tasks)]
        )
    if section.blocks:
        totals = ", ".join(f"{name} {core}" for name, core in gpt2_core.CORE.items())
        section.blocks.insert(0, Text(
            "CORE is the mean over 22 tasks of the accuracy above chance, (accuracy - baseline) / "
            "(1 - baseline): 0 is guessing, 1 is perfect (Li et al. 2024, arXiv:2406.11794). "
            f"Published for comparison: {totals}, and of six of the tasks their accuracies "
            f"({gpt2_core.SOURCE})."
        ))  # fmt: skip
    return section


def error_of_centred(measured: dict, task: str) -> float | None:
    if f"core_stderr/{task}" not in measured:
        return None
    accuracy, error = measured[f"core_accuracy/{task}"], measured[f"core_stderr/{task}"]
    return centred_stderr(accuracy, error, measured[f"core/{task}"])


def core_figure(stage: StageRecord, measured: dict, tasks: list[str]) -> Figure:
    values = [measured["core"], *(measured[f"core/{task}"] for task in tasks)]
    errors = [stage.core_stderr(), *(error_of_centred(measured, task) for task in tasks)]
    references = []
    for model in GPT2_SHOWN:
        known = gpt2_core.centred(model)
        points = [(i, known[task]) for i, task in enumerate(tasks, 1) if task in known]
        references.append(Reference(model, [(0, gpt2_core.CORE[model]), *points]))
    title = f"CORE of the {stage.name} model by task, with standard errors"
    svg = bars_svg(
        f"core-{stage.name}",
        ["CORE", *map(readable, tasks)],
        values,
        errors,
        references,
        title=title,
        x_label="centred accuracy",
        value_label=f"{stage.tag} {stage.name}",
    )
    return Figure(svg, title, wide=True)


def core_table(stage: StageRecord, measured: dict, tasks: list[str]) -> Table:
    known = {model: gpt2_core.centred(model) for model in GPT2_SHOWN}
    rows = [["CORE", "", format_decimal(measured["core"], stage.core_stderr()), ""]]
    rows[0] += [f"{gpt2_core.CORE[model]:.4f}" for model in GPT2_SHOWN]
    for task in tasks:
        accuracy = format_percent(
            measured[f"core_accuracy/{task}"], measured.get(f"core_stderr/{task}")
        )
        count = measured.get(f"core_examples/{task}")
        centred = format_decimal(measured[f"core/{task}"], error_of_centred(measured, task))
        row = [task, accuracy, centred, "" if count is None else f"{count:,}"]
        rows.append(row + [f"{k[task]:.3f}" if task in k else "" for k in known.values()])
    caption = f"{stage.tag} {stage.name}, step {stage.step:,}"
    return Table(caption, ["task", "accuracy", "centred", "examples", *GPT2_SHOWN], rows)


# ---------------------------------------------------------------- chat tasks


def chat_section(stages: list[StageRecord]) -> Section:
    """Each task in a row, each stage in a column; then what chance and leakage would give."""
    section = Section("Chat tasks")
    measured = {stage.name: stage.evaluations for stage in stages}
    tasks = list(dict.fromkeys(n for m in measured.values() for n in names_after("accuracy/", m)))
    rows = [task_row(task, list(measured.values())) for task in tasks]
    for key in dict.fromkeys(k for m in measured.values() for k in m if k.startswith("pass@")):
        name, _, task = key.partition("/")
        if name == "pass@1":  # is the accuracy
            continue
        cells = [format_percent(m[key]) if key in m else "" for m in measured.values()]
        rows.append([f"{task} {name}", *cells, "", ""])
    if any("chatcore" in m for m in measured.values()):
        cells = [
            format_decimal(m["chatcore"], stage.chatcore_stderr()) if "chatcore" in m else ""
            for stage, m in zip(stages, measured.values(), strict=True)
        ]
        rows.append(["ChatCORE", *cells, "", ""])
    if rows:
        note = "Accuracy ± its standard error."
        if rows[-1][0] == "ChatCORE":
            note += " ChatCORE is the mean accuracy above chance of the model card's five tasks."
        section.blocks.append(
            Table("Accuracy by stage", ["task", *measured, "questions", "chance"], rows, note)
        )
    section.blocks.extend(control_tables(stages))
    return section


def task_row(task: str, measured: list[dict]) -> list[str]:
    """[task, accuracy of each stage, number of questions, chance]; a stage that was asked another
    number has it in its own cell."""
    counts = [m[f"examples/{task}"] for m in measured if f"examples/{task}" in m]
    usual, cells, chance = max(counts, default=None), [], ""
    for m in measured:
        cell = ""
        if f"accuracy/{task}" in m:
            cell = format_percent(m[f"accuracy/{task}"], m.get(f"stderr/{task}"))
            count = m.get(f"examples/{task}")
            cell += "" if count in (None, usual) else f" (of {count:,})"
            if f"centred/{task}" in m:
                guessing = baseline(m[f"accuracy/{task}"], m[f"centred/{task}"])
                chance = chance or maybe(format_percent, guessing)
        cells.append(cell)
    return [task, *cells, "" if usual is None else f"{usual:,}", chance]


def control_tables(stages: list[StageRecord]) -> list[Table]:
    """The same questions with shuffled choices or wrong tool results, beside the true ones."""
    rows = []
    for stage in stages:
        measured = stage.evaluations
        for task in names_after("control/", measured):
            accuracy = measured.get(f"accuracy/{task}")
            control = measured[f"control/{task}"]
            rows.append([
                f"{task}, {stage.name}",
                "" if accuracy is None
                else format_percent(accuracy, measured.get(f"stderr/{task}")),
                format_percent(control, measured.get(f"control_stderr/{task}")),
                "" if accuracy is None else f"{100 * (accuracy - control):+.1f} points",
            ])  # fmt: skip
    note = "The control asks the same questions with shuffled choices or wrong tool results."
    headers = ["task", "true", "control", "difference"]
    return [Table("Controls", headers, rows, note)] if rows else []


# ---------------------------------------------------------------- samples


def samples_section(stages: list[StageRecord]) -> Section:
    """Continuations by the base model, and the first answers to each task by the last stage that
    has any."""
    section = Section("Samples")
    for stage in stages:
        path = stage.run_folder / f"samples-step{stage.step}.json"
        for i, sample in enumerate(json.loads(path.read_text()) if path.exists() else ()):
            if i == 0:
                section.blocks.append(Text(f"Continuations by {stage.tag} {stage.name}:"))
            section.blocks.append(
                Sample(shortened(sample["prompt"]), shortened(sample["completion"]))
            )
    answered = [s for s in stages if list(answer_files(s))]
    for path in answer_files(answered[-1]) if answered else ():
        task = path.name.rpartition("-step")[0]
        with path.open(encoding="utf-8") as file:
            answers = [
                json.loads(line) for line, _ in zip(file, range(ANSWERS_A_TASK), strict=False)
            ]
        section.blocks.append(Text(f"{task}: first answers by {answered[-1].name}"))
        for answer in answers:
            verdict = {True: "right", False: "wrong"}.get(answer.get("right"), "")
            prompt = re.sub(r"(\s*<\|\w+\|>\s*)+", "\n", answer["prompt"]).strip()
            said = shortened(str(answer["completion"]))
            section.blocks.append(Sample(shortened(prompt), said, verdict))
    return section


def answer_files(stage: StageRecord) -> list[Path]:
    return sorted((stage.run_folder / "answers").glob(f"*-step{stage.step}.jsonl"))


def shortened(text: str) -> str:
    """subtle: the end is kept, because there the question stands that a long prompt leads to."""
    return text if len(text) <= LONGEST_SAMPLE else "… " + text[-LONGEST_SAMPLE:]
