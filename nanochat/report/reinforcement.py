"""Reinforcement learning on held-out problems, beside other runs that began with the same model."""

from pathlib import Path
from statistics import median

import numpy as np

from nanochat.checkpoint.index import available_checkpoints
from nanochat.report.evaluations import names_after
from nanochat.report.figures import format_number
from nanochat.report.page import Section, Table
from nanochat.report.plots import lines
from nanochat.report.run import StageRecord, load_stage

MOST_RUNS = 3  # in a figure
WEIGHTS = {"group_mean": "reward - group's mean", "rejection": "1 if right, else 0"}
CURVES = {"likeliest answers": "held_out/greedy", "sampled answers": "held_out/pass@1"}
COLUMNS = {  # figure: (header, how it is written)
    "mixed_groups": ("right and wrong", ".1%"),
    "answer_tokens": ("tokens", ".1f"),
    "cut_share": ("cut off", ".1%"),
    "entropy": ("entropy", ".3f"),
    "kl_to_start": ("KL to the start", ".4f"),
}
NOTE = (
    "Shares of held-out problems; pass@k: one of k sampled answers is right. Entropy and KL "
    "divergence are nats a token."
)
RUNS_NOTE = (
    "The difference is that of the same problems' likeliest answers, last measurement less first, "
    "with the standard error of a paired difference. Minutes are those of the steps, sampling "
    "included."
)


def measurements(run: StageRecord) -> list[dict]:
    """The figures of held-out problems, a record for each step that they were answered at."""
    found: dict[int, dict] = {}
    for record in run.records:
        if any(key.startswith("held_out/") for key in record):
            found.setdefault(record["step"], {}).update(record)
    return [record for _, record in sorted(found.items()) if "held_out/greedy" in record]


def paired_difference(before: str, after: str) -> tuple[float, float]:
    """(mean, standard error) of after - before, each "1" or "0" for the same problems.

    Example: paired_difference("0010", "1110") == (0.5, 0.25)
    """
    change = np.array([int(b) - int(a) for a, b in zip(before, after, strict=True)])
    return float(change.mean()), float(change.std() / len(change) ** 0.5)


def runs_from_the_same_model(own: StageRecord) -> list[StageRecord]:
    """`own`, then other runs of its task and parent that are measured, the newest first."""

    def origin(run: StageRecord) -> tuple:
        return Path(run.run["parent"]).parts[-3:], run.run["config"]["task"]

    newest = {c.tag: c.path for c in reversed(available_checkpoints("rl"))}
    newest.pop(own.tag, None)
    others = map(load_stage, reversed(newest.values()))
    return [own, *(run for run in others if origin(run) == origin(own) and measurements(run))]


def minutes(run: StageRecord, step: int) -> float:
    """Of the steps up to `step`."""
    return sum(r["dt"] for r in run.steps if r["step"] <= step) / 60


def rl_section(stages: list[StageRecord], figures: bool = False) -> Section:
    """A run's measurements, and what each run from the same model gained; with figures, curves."""
    own = next((stage for stage in stages if stage.name == "rl" and measurements(stage)), None)
    if own is None:
        return Section("Reinforcement learning")
    runs, records = runs_from_the_same_model(own), measurements(own)
    blocks: list = []
    if figures:
        curves = []
        for name, key in CURVES.items():
            points = {
                run.tag: [(minutes(run, r["step"]), r[key]) for r in measurements(run)]
                for run in runs[:MOST_RUNS]
            }
            curves.append(lines(f"Held-out {name}", points, "minutes of training", "right"))
        blocks.append(curves)
    passes = [name for name in names_after("held_out/", records[0]) if name[-1].isdigit()]
    columns = {"greedy": ("likeliest answer", ".1%")}
    columns |= {name: (name, ".1%") for name in passes} | COLUMNS  # "pass@8"
    rows = []
    for r in records:
        cells = [
            format_number(r.get(f"held_out/{name}"), spec, r.get(f"held_out/{name}_stderr"))
            for name, (_, spec) in columns.items()
        ]
        rows.append([f"{r['step']:,}", *cells])
    headers = ["step", *(header for header, _ in columns.values())]
    blocks.append(Table(f"Held-out problems, {own.tag}", headers, rows, NOTE))
    headers = ["run", "an answer weighs", "steps", "minutes", "likeliest answers", "difference"]
    headers += ["sampled answers", "sampled tokens/s", "time in sampling"]
    blocks.append(Table("Runs from the same model", headers, [*map(gains, runs)], RUNS_NOTE))
    return Section("Reinforcement learning", blocks)


def gains(run: StageRecord) -> list[str]:
    """A run's row in the table of runs."""
    first, *_, last = measurements(run) * 2  # one measurement is both
    likeliest, sampled = (
        f"{format_number(first[key], '.1%')} to {format_number(last[key], '.1%')}"
        for key in CURVES.values()
    )
    change = ""
    before, after = (record.get("held_out/right", "") for record in (first, last))
    if before and len(before) == len(after):
        points, error = (100 * x for x in paired_difference(before, after))
        change = f"{points:+.1f} ± {error:.1f} points"
    weight = WEIGHTS[run.run["config"]["policy"].get("advantage", "group_mean")]
    row = [run.tag, weight, f"{last['step']:,}", f"{minutes(run, last['step']):.1f}"]
    row += [likeliest, change, sampled]
    dt = {r["step"]: r["dt"] for r in run.steps}
    timed = [r for r in run.records if "rl/rollout_seconds" in r and r["step"] in dt]
    if not timed:
        return [*row, "", ""]
    speed = median(r["rl/rollout_tokens_per_second"] for r in timed)
    share = median(r["rl/rollout_seconds"] / dt[r["step"]] for r in timed)
    return [*row, f"{speed:,.0f}", f"{share:.0%}"]
