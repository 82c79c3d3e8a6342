"""What training took: headline figures, stages, curves, cost, and how it was made."""

import shlex

from nanochat.report.figures import (
    format_compact,
    format_dollars,
    format_hours,
    format_memory,
    format_number,
)
from nanochat.report.page import Figure, Section, Table
from nanochat.report.plots import lines
from nanochat.report.run import WORLD_GRAMS_PER_KWH, StageRecord, parameters, total


def headline(stages: list[StageRecord]) -> list[tuple[str, str, str]]:
    """(label, value, note) of the figures on top: those that there are."""
    base, config, price = stages[0], stages[-1].config, stages[-1].assumed.price_per_hour
    shape = f"{config['num_hidden_layers']} layers, width {config['hidden_size']}"
    tokens, flops = total(s.tokens for s in stages), total(s.flops for s in stages)
    _, hours, cost, energy, _ = cost_rows(stages)[-1]
    estimated = any(stage.energy and stage.energy[1].startswith("estimated") for stage in stages)
    facts = [
        ("Parameters", format_compact(sum(parameters(config).values())), shape),
        ("Tokens", format_compact(tokens), "through the model, all stages"),
        ("Training FLOPs", format_number(flops, ".2e"), ""),
        ("Time", hours, "first step to last"),
        ("Cost", cost, f"at ${price or 0:g} an hour"),
        ("Energy", energy, "estimated" if estimated else "measured"),
        ("MFU", format_number(base.median("mfu"), ".1%"), f"median step of {base.name}"),
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
    if not any(stage.steps for stage in stages):
        return []
    rows = [
        {
            "stage": stage.name,
            "steps": f"{stage.step:,}",
            "time": format_hours(sum(step["dt"] for step in stage.steps) / 3600 or None),
            "tokens": format_compact(stage.tokens),
            "FLOPs": format_number(stage.flops, ".2e"),
            "tokens/s": format_number(stage.median("tokens_per_second"), ",.0f"),
            "MFU": format_number(stage.median("mfu"), ".1%"),
            "memory": format_memory(stage.run.get("peak_memory_bytes")),
            "last loss": format_number(stage.steps[-1]["loss"] if stage.steps else None, ".4f"),
            "val bits/byte": format_number(stage.val_bpb, ".4f"),
        }
        for stage in stages
    ]
    note = (
        "Time is that of the steps alone; tokens/s and MFU are those of the median step. MFU = "
        "tokens/s × FLOPs per token / peak; FLOPs per token = 6 × (parameters - embedding) + 12 × "
        "layers × heads × head width × context."
    )
    return [Table("Training by stage", [*rows[0]], [[*row.values()] for row in rows], note)]


def parameter_table(config: dict) -> Table:
    """How many parameters each part of the model has."""
    sizes = parameters(config)
    size = sum(sizes.values())
    rows = [[part, f"{count:,}", f"{count / size:.1%}"] for part, count in sizes.items()]
    return Table("Parameters", ["part", "parameters", "share"], [*rows, ["all", f"{size:,}", ""]])


def curves(stage: StageRecord) -> list[Figure]:
    """Reward, loss, bits per byte, learning rate and throughput over the steps."""
    drawn = [  # name, key, unit, noisy, from_zero
        ("reward", "rl/reward", "mean reward", True, False),
        ("loss", "loss", "nats a token", True, False),
        ("bits per byte", "val_bpb", "bits per byte", False, False),
        ("learning rate", "lr", "factor on the peak", False, True),
        ("throughput", "tokens_per_second", "tokens/s", True, True),
    ]
    return [
        lines(f"{stage.name}: {name}", {"": points}, "step", *look)
        for name, key, *look in drawn
        if len(points := [(r["step"], r[key]) for r in stage.records if key in r]) > 1
    ]


def cost_rows(stages: list[StageRecord]) -> list[list[str]]:
    """[stage, hours, cost, energy, CO2] of each stage, and of all."""
    spent = {stage.name: stage.spent for stage in stages}
    spent["all"] = tuple(total(column) for column in zip(*spent.values(), strict=True))
    rows = []
    for name, (hours, dollars, kwh, grams) in spent.items():
        energy, carbon = format_compact(kwh and 1000 * kwh, "Wh"), format_compact(grams, "g")
        rows.append([name, format_hours(hours), format_dollars(dollars), energy, carbon])
    return rows


def cost_section(stages: list[StageRecord]) -> Section:
    """Hours, price, energy and CO2 by stage, with the formulas."""
    rows, assumed = cost_rows(stages), stages[-1].assumed
    if not any(any(cells) for _, *cells in rows):
        return Section("Time, cost and energy")
    note = "Hours run from a stage's start to its last step: compilation, evaluations and saves "
    note += "are in them, preparing the data is not."
    if assumed.price_per_hour:
        note += f" Cost = hours × ${assumed.price_per_hour:g}, the machine's price an hour."
    if hows := [f"{stage.name} {stage.energy[1]}" for stage in stages if stage.energy]:
        grams = f"{assumed.grams_per_kwh or WORLD_GRAMS_PER_KWH:g} g/kWh"
        grams += "" if assumed.grams_per_kwh else ", the world's average in 2023 by Ember"
        note += f" Energy: {'; '.join(hows)}. CO2 = energy × {grams}."
    headers = ["stage", "hours", "cost", "energy", "CO2"]
    table = Table("Hours, cost and energy by stage", headers, rows, note)
    return Section("Time, cost and energy", [table])


def provenance_section(stages: list[StageRecord]) -> Section:
    """Parameters, hardware, versions, commit, data and commands: what it takes to do it again."""
    data = []
    for stage in stages:
        facts = stage.run.get("data", {}).items()
        texts = [f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in facts]
        data.append([stage.name, ", ".join(texts), stage.run.get("data_fingerprint", "")[:16]])
    commands = [shlex.join(s["command"]) for stage in stages for s in stage.sessions]
    commands = [[command] for command in dict.fromkeys(commands)]
    tables = [parameter_table(stages[-1].config), software_table(stages)]
    tables.append(Table("Data", ["stage", "what", "fingerprint"], data, numbers=False))
    tables.append(Table("Command lines, in order", ["command"], commands, numbers=False))
    return Section("How it was made", [table for table in tables if table.rows])


def software_table(stages: list[StageRecord]) -> Table:
    """What each stage's last session ran on and with."""
    columns = []
    for stage in stages:
        facts: dict = {"device": stage.device}
        if stage.sessions:
            last = stage.sessions[-1]
            peak = f"{last['peak_flops'] / 1e12:.4g} TFLOP/s ({last['peak_source']})"
            facts |= {"compute dtype": last["dtype"], "peak, all devices": peak}
            facts |= {"nodes": last["nodes"], "CUDA": last["cuda"]}
        facts |= stage.run.get("versions", {})
        columns.append(facts | {"commit": (stage.run.get("git_commit") or "")[:20]})
    headers = [stage.name for stage in stages]
    if all(column == columns[0] for column in columns):
        columns, headers = columns[:1], ["all stages"]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(str(column.get(name) or "") for column in columns)] for name in names]
    rows = [row for row in rows if any(row[1:])]
    return Table("Hardware and software", ["", *headers], rows, numbers=False)
