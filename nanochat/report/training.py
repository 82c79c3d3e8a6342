"""What training took: headline figures, stages, curves, cost, and how it was made."""

import shlex

from nanochat.report.figures import (
    format_compact,
    format_dollars,
    format_energy,
    format_hours,
    format_mass,
    format_memory,
    format_number,
)
from nanochat.report.page import Code, Figure, Section, Table
from nanochat.report.plots import curve
from nanochat.report.run import WORLD_GRAMS_PER_KWH, Assumptions, StageRecord, parameters, total


def headline(stages: list[StageRecord], assumed: Assumptions) -> list[tuple[str, str, str]]:
    """(label, value, note) of the figures on top: those that there are."""
    base, config = stages[0], stages[-1].config
    energies = [stage.energy(assumed) for stage in stages]
    size = sum(parameters(config).values()) if config else None
    shape = f"{config.get('num_hidden_layers')} layers, width {config.get('hidden_size')}"
    hours, price = total(stage.hours for stage in stages), assumed.price_per_hour
    cost = None if hours is None or price is None else hours * price
    facts = [
        ("Parameters", format_compact(size), shape),
        (
            "Tokens",
            format_compact(total(s.tokens for s in stages)),
            "through the model, all stages",
        ),
        ("Training FLOPs", format_number(total(s.flops for s in stages), ".2e"), ""),
        ("Time", format_hours(hours), "first step to last"),
        ("Cost", format_dollars(cost), f"at ${price:g} an hour" if price else ""),
        (
            "Energy",
            format_energy(total(used and used.kwh for used in energies)),
            "measured" if all(used and used.measured for used in energies) else "estimated",
        ),
        ("MFU", format_number(base.mfu, ".1%"), f"median step of {base.name}"),
    ]
    if base.name == "base":
        bits = base.evaluations.get("bpb/val", base.val_bpb)
        facts.append(("Bits per byte", format_number(bits, ".4f"), "base, validation text"))
    for label in ("CORE", "ChatCORE"):
        key = label.lower()
        for stage in [stage for stage in stages if key in stage.evaluations][-1:]:
            error = format_number(stage.evaluations.get(f"{key}_stderr"), ".4f")
            note = f"± {error}, {stage.name}" if error else stage.name
            facts.append((label, format_number(stage.evaluations[key], ".4f"), note))
    return [fact for fact in facts if fact[1]]


def stage_tables(stages: list[StageRecord]) -> list[Table]:
    """What training took and reached, one line a stage; no table when no stage has records."""
    rows = [
        [
            stage.name,
            f"{stage.step:,}",
            format_hours(stage.step_hours),
            format_compact(stage.tokens),
            format_number(stage.flops, ".2e"),
            format_number(stage.tokens_per_second, ",.0f"),
            format_number(stage.mfu, ".1%"),
            format_memory(stage.run.get("peak_memory_bytes")),
            format_number(stage.steps[-1]["loss"] if stage.steps else None, ".4f"),
            format_number(stage.val_bpb, ".4f"),
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
    measured = any(stage.steps for stage in stages)
    return [Table("Training by stage", headers, rows, note)] if measured else []


def parameter_table(config: dict) -> Table:
    """How many parameters each part of the model has."""
    sizes = parameters(config)
    size = sum(sizes.values())
    rows = [[part, f"{count:,}", f"{count / size:.1%}"] for part, count in sizes.items()]
    return Table("Parameters", ["part", "parameters", "share"], [*rows, ["all", f"{size:,}", ""]])


def curves(stage: StageRecord) -> list[Figure]:
    """Loss, bits per byte, learning rate and throughput over the steps."""
    checked = [r for r in stage.records if "val_bpb" in r]
    drawn = [
        ("loss", stage.steps, "loss", "nats a token", {"noisy": True}),
        ("bits per byte", checked, "val_bpb", "bits per byte", {}),
        ("learning rate", stage.steps, "lr", "factor on the peak", {"from_zero": True}),
        ("throughput", stage.steps, "tokens_per_second", "tokens/s",
         {"noisy": True, "from_zero": True}),
    ]  # fmt: skip
    return [
        curve(f"{stage.name}: {what}", [r["step"] for r in rs], [r[key] for r in rs], unit, **look)
        for what, rs, key, unit, look in drawn
        if len(rs) > 1
    ]


def cost_section(stages: list[StageRecord], assumed: Assumptions) -> Section:
    """Hours, price, energy and CO2 by stage, with the formulas."""
    price, grid = assumed.price_per_hour, assumed.grams_per_kwh
    source = "given by whoever ran this"
    if grid is None:
        grid, source = WORLD_GRAMS_PER_KWH, "the world's average in 2023 by Ember"

    def row(name: str, hours: float | None, kwh: float | None) -> list[str]:
        cost = None if hours is None or price is None else hours * price
        grams = None if kwh is None else kwh * grid
        cells = format_hours(hours), format_dollars(cost), format_energy(kwh), format_mass(grams)
        return [name, *cells]

    used = {stage.name: stage.energy(assumed) for stage in stages}
    kwh = {name: energy and energy.kwh for name, energy in used.items()}
    rows = [row(stage.name, stage.hours, kwh[stage.name]) for stage in stages]
    if not any(any(cells) for _, *cells in rows):
        return Section("Time, cost and energy")
    rows.append(row("all", total(stage.hours for stage in stages), total(kwh.values())))
    notes = [
        "Hours run from a stage's first step to its last, with what lies between: compilation, "
        "evaluations, saves; preparing the data before is not in them."
    ]
    if price is not None:
        notes.append(f"Cost = hours × ${price:g}, the machine's price an hour.")
    if hows := [f"{name} {energy.how}" for name, energy in used.items() if energy]:
        notes.append(f"Energy: {'; '.join(hows)}. CO2 = energy × {grid:g} g/kWh, {source}.")
    headers = ["stage", "hours", "cost", "energy", "CO2"]
    table = Table("Hours, cost and energy by stage", headers, rows, " ".join(notes))
    return Section("Time, cost and energy", [table])


def provenance_section(stages: list[StageRecord]) -> Section:
    """Hardware, versions, commit, data and command lines: what it takes to do it again."""
    columns = [software(stage) for stage in stages]
    headers = ["", *(stage.name for stage in stages)]
    if all(column == columns[0] for column in columns):
        columns, headers = columns[:1], ["", "all stages"]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, "") for column in columns)] for name in names]
    data = []
    for stage in stages:
        facts = stage.run.get("data", {}).items()
        texts = [f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in facts]
        data.append([stage.name, ", ".join(texts), stage.run.get("data_fingerprint", "")[:16]])
    config = stages[-1].config
    blocks = [
        *([parameter_table(config)] if config else []),
        Table("Hardware and software", headers, rows, numbers=False),
        Table("Data", ["stage", "what", "fingerprint"], data, numbers=False),
    ]
    commands = dict.fromkeys(shlex.join(s["command"]) for st in stages for s in st.sessions)
    if commands:
        blocks += ["Command lines, in order:", Code("\n".join(commands))]
    return Section("How it was made", blocks)


def software(stage: StageRecord) -> dict[str, str]:
    """What the stage's last session ran on and with."""
    facts: dict = {"device": stage.device}
    if stage.sessions:
        last = stage.sessions[-1]
        peak = f"{last['peak_flops'] / 1e12:.4g} TFLOP/s ({last['peak_source']})"
        facts |= {"compute dtype": last["dtype"], "peak, all devices": peak}
        facts |= {"nodes": last["nodes"], "CUDA": last["cuda"]}
    facts |= stage.run.get("versions", {})
    facts["commit"] = stage.run.get("git_commit", "")[:20]
    return {name: str(value) for name, value in facts.items() if value}
