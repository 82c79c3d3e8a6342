"""The report's sections on training: the stages' figures, their curves, what they cost."""

from nanochat.report.figures import (
    format_compact,
    format_decimal,
    format_duration,
    format_energy,
    format_flops,
    format_mass,
    format_memory,
    format_money,
    format_percent,
    maybe,
)
from nanochat.report.formulas import Assumptions, co2_grams, cost
from nanochat.report.page import Figure, Section, Table
from nanochat.report.plots import Curve, curves_svg, running_mean
from nanochat.report.run import StageRecord, Totals, parameters


def stage_table(stages: list[StageRecord]) -> Table:
    """One line a stage: what training took and reached."""
    rows = [
        [
            stage.name,
            f"{stage.step:,}",
            maybe(lambda s: format_duration(s / 3600), stage.seconds),
            maybe(format_compact, stage.tokens or None),
            maybe(format_flops, stage.flops),
            maybe(lambda x: f"{x:,.0f}", stage.tokens_per_second),
            maybe(format_percent, stage.mfu),
            maybe(format_memory, stage.run.get("peak_memory_bytes")),
            format_decimal(stage.steps[-1]["loss"]) if stage.steps else "",
            maybe(format_decimal, stage.val_bpb),
        ]
        for stage in stages
    ]
    headers = ["stage", "steps", "time", "tokens", "FLOPs", "tokens/s", "MFU", "memory"]
    headers += ["last loss", "val bits/byte"]
    note = (
        "Time is that of the steps alone; tokens/s and MFU are those of the median step. MFU = "
        "tokens/s × FLOPs per token / the peak of all devices; FLOPs per token = 6 × (parameters "
        "- embedding) + 12 × layers × heads × head width × context. Bits per byte are of each "
        "stage's own validation data."
    )
    return Table("Training by stage", headers, rows, note)


def parameter_table(config: dict) -> Table:
    """How many parameters each part of the model has."""
    sizes = parameters(config)
    total = sum(sizes.values())
    rows = [[name, f"{size:,}", f"{size / total:.1%}"] for name, size in sizes.items()]
    return Table("Parameters", ["part", "parameters", "share"], [*rows, ["all", f"{total:,}", ""]])


def curves(stage: StageRecord) -> list[Figure]:
    """Loss, bits per byte, learning rate and throughput over the steps."""
    steps = stage.steps
    if len(steps) < 2:
        return []
    xs = [r["step"] for r in steps]
    losses, speeds = [r["loss"] for r in steps], [r["tokens_per_second"] for r in steps]
    checked = [r for r in stage.records if "val_bpb" in r and "step" in r]
    drawn = {
        "loss": ([Curve(xs, losses, faint=True), Curve(xs, running_mean(losses))], "nats a token"),
        "bits per byte": (
            [Curve([r["step"] for r in checked], [r["val_bpb"] for r in checked], marked=True)],
            "bits per byte",
        ),
        "learning rate": ([Curve(xs, [r["lr"] for r in steps])], "factor on the peak"),
        "throughput": (
            [Curve(xs, speeds, faint=True), Curve(xs, running_mean(speeds))],
            "tokens/s",
        ),
    }
    figures = []
    for what, (lines, unit) in drawn.items():
        if len(lines[0].xs) > 1:
            title = f"{stage.name}: {what}"
            name = f"{stage.name}-{what.replace(' ', '-')}"
            zero = what in ("learning rate", "throughput")
            labels = {"title": title, "x_label": "step", "y_label": unit, "from_zero": zero}
            figures.append(Figure(curves_svg(name, lines, **labels), title))
    return figures


def cost_section(stages: list[StageRecord], totals: Totals, assumed: Assumptions) -> Section:
    """Hours, price, energy and CO2 by stage, with the formulas."""
    section, rows, hows = Section("Time, cost and energy"), [], []
    for stage in stages:
        used = stage.energy(assumed)
        price = assumed.price_per_hour
        rows.append([
            stage.name,
            maybe(format_duration, stage.hours),
            "" if price is None or stage.hours is None else format_money(cost(stage.hours, price)),
            format_energy(used.kwh) if used else "",
            format_mass(co2_grams(used.kwh, assumed.grid)) if used else "",
        ])  # fmt: skip
        if used:
            hows.append(f"{stage.name} {used.how}")
    if not any(any(row[1:]) for row in rows):
        return section
    grams = maybe(lambda kwh: format_mass(co2_grams(kwh, assumed.grid)), totals.kwh)
    total = [maybe(format_duration, totals.hours), maybe(format_money, totals.cost)]
    rows.append(["all", *total, maybe(format_energy, totals.kwh), grams])
    wall = "Hours run from a stage's first step to its last, with what lies between: compilation, "
    wall += "evaluations, saves; preparing the data before is not in them."
    notes = [wall if totals.wall else "Hours are those of the training steps."]
    if assumed.price_per_hour is not None:
        notes.append(f"Cost = hours × ${assumed.price_per_hour:g}, the machine's price an hour.")
    if hows:
        notes.append(f"Energy: {'; '.join(hows)}.")
        notes.append(f"CO2 = energy × {assumed.grid:g} g/kWh, {assumed.grid_source}.")
    headers = ["stage", "hours", "cost", "energy", "CO2"]
    section.blocks.extend(
        [Table("Hours, cost and energy by stage", headers, rows, " ".join(notes))]
    )
    return section
