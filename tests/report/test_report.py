"""The report: figures worked out by hand, nothing that was not measured, text that stays text."""

import importlib
import json
import math
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_run import CHAT, CORE, HOSTILE, make_base, make_sft, write
from tiny_checkpoint import save

from nanochat.checkpoint.hf_config import to_hf
from nanochat.common import CheckpointError
from nanochat.configurator import cli
from nanochat.report import energy, report
from nanochat.report.energy import EnergyMeter, rapl_meter
from nanochat.report.evaluations import tokenizer_section
from nanochat.report.figures import format_compact, format_hours, format_number
from nanochat.report.page import Page, Sample, Section, Table, to_html, to_markdown
from nanochat.report.plots import SERIES, lines, running_mean
from nanochat.report.report import make_page, remake, write_report
from nanochat.report.run import (
    Assumptions,
    lineage,
    newest_checkpoint,
    parameters,
    total,
)
from nanochat.report.training import headline
from nanochat.training.log import TrainLog


def assuming(stages, **assumed):
    return [replace(stage, assumed=Assumptions(**assumed)) for stage in stages]


@pytest.fixture
def stages():
    return lineage(make_sft(make_base()))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The made run's, at 24 dollars an hour; drawn once, because the figures take their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(tmp_path_factory.mktemp("base")))
        return make_page(lineage(make_sft(make_base()), Assumptions(price_per_hour=24)))


# ---------------------------------------------------------------- figures by hand


def test_the_stage_s_figures_are_those_worked_out_by_hand(stages):
    base, sft = stages
    assert (base.name, base.step, base.tokens) == ("base", 4, 400)
    assert base.hours == 0.01
    assert base.flops == 400 * 1000 and sft.flops == 200 * 2000
    assert base.median("tokens_per_second") == 100  # of 50, 100, 100, 100
    assert base.median("mfu") == 0.25  # 100 tokens/s x 1000 FLOPs / 4e5
    assert base.val_bpb == 1.25 and base.device == "2 × NVIDIA H100 80GB HBM3"
    assert sft.hours == 18 / 3600  # the evaluation that came later is not training


def test_energy_is_measured_where_there_was_a_meter_else_estimated(stages):
    base, sft = stages
    kwh, how = base.energy
    assert kwh == pytest.approx(0.001) and how == "measured: NVML, 2 GPU boards"  # 3,600 J
    kwh, how = sft.energy  # 2 boards of 700 W for 18 s
    assert kwh == pytest.approx(1.4 * 18 / 3600)
    assert how.startswith("estimated: 1,400 W = 2 × 700 W by the card's data sheet")
    given = assuming(stages, watts=100)
    assert given[1].energy[0] == pytest.approx(0.1 * 18 / 3600)
    assert given[0].energy == base.energy


def test_a_second_node_counts_as_much_as_the_measured_one(stages):
    base = stages[0]
    base.sessions[0]["nodes"] = 2
    kwh, how = base.energy
    assert kwh == pytest.approx(0.002) and "times 2 nodes" in how


def test_a_processor_without_a_meter_has_no_energy_unless_watts_are_given(stages):
    sft = stages[1]
    sft.sessions[0]["device"] = "cpu AMD EPYC"
    assert sft.energy is None
    assert "Energy" not in {label for label, *_ in headline(stages)}
    assert assuming(stages, watts=360)[1].energy[0] == pytest.approx(0.36 * 18 / 3600)


def test_a_total_is_none_where_a_part_is_missing():
    assert (total([1, 2.5]), total([1, None])) == (3.5, None)


def test_two_sessions_add_up_and_what_lies_between_them_is_not_paid_for():
    folder = make_base(evaluated=False)
    records = [json.loads(x) for x in (folder.parent / "metrics.jsonl").read_text().splitlines()]
    again = {"step": 3, "time": 5000.0, "session": records[0]["session"]}
    late = [r | {"time": r["time"] + 4000} for r in records if r["step"] == 4]
    write(folder.parent, "base", [*(r for r in records if r["step"] < 4), again, *late])
    assert lineage(folder)[0].hours == (30 + 36) / 3600  # 1000..1030, 5000..5036


def test_parameters_of_the_model_card_s_d20():
    from nanochat.gpt import GPTConfig

    sizes = parameters(to_hf(GPTConfig.from_depth(20, vocab_size=65536)))
    assert sizes == {
        "embedding": 83_886_080, "attention": 131_072_000, "MLP": 262_144_000, "head": 83_886_080
    }  # fmt: skip
    assert sum(sizes.values()) == 560_988_160


def test_words():
    assert format_compact(560_988_160) == "561M" and format_compact(999) == "999"
    hours = (0.25, 3, 5 / 3600, None)
    assert [format_hours(h) for h in hours] == ["15.0 min", "3.00 h", "5.0 s", ""]
    assert (
        format_number(0.3151, ".1%", 0.004) == "31.5% ± 0.4%"
        and format_compact(2500, "g") == "2.5 kg"
    )


# ---------------------------------------------------------------- which records count


def test_records_past_the_checkpoint_and_evaluations_of_another_step_do_not_count():
    folder = make_base()
    later = [json.loads(x) for x in (folder.parent / "metrics.jsonl").read_text().splitlines()]
    more = [{"step": 5, "time": 1040.0, "dt": 1.0, "loss": 1.0}, {"step": 5, "core": 0.9}]
    write(folder.parent, "base", [*later, *more])
    (stage,) = lineage(folder)
    assert stage.tokens == 400 and stage.evaluations["core"] == 0.4
    newer = save(5, "base", run={"config": {}})
    assert lineage(newer)[0].evaluations == {"core": 0.9}


def test_a_parent_that_was_pruned_since_is_told(stages, capsys):
    shutil.rmtree(stages[0].run_folder / "step_000004")
    assert [stage.name for stage in lineage(newest_checkpoint("tiny"))] == ["sft"]
    assert "step_000004 is gone, so the stages up to it are not shown" in capsys.readouterr().out


def test_a_run_that_moved_finds_its_parents(stages, base_dir, tmp_path, monkeypatch):
    moved = base_dir.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(moved))
    found = lineage(moved / "sft_checkpoints" / "tiny" / "step_000001")
    assert [stage.name for stage in found] == ["base", "sft"] and found[0].tokens == 400


def test_no_run_is_an_error_that_says_what_there_is():
    make_base()
    with pytest.raises(CheckpointError, match="no run other .*base tiny at step 4"):
        write_report("other")


# ---------------------------------------------------------------- meters


def test_a_meter_counts_from_reading_to_reading_and_over_a_counter_s_end(tmp_path):
    zone = tmp_path / "intel-rapl:0"
    for folder, name in ((zone, "package-0"), (tmp_path / "intel-rapl:1", "psys")):
        folder.mkdir()
        (folder / "name").write_text(name + "\n")
        (folder / "max_energy_range_uj").write_text("100000000\n")
        (folder / "energy_uj").write_text("90000000\n")
    meter = rapl_meter(tmp_path)
    assert meter.source == "RAPL, 1 processor package"
    (zone / "energy_uj").write_text("95500000")
    assert meter.take() == pytest.approx(5.5)
    (zone / "energy_uj").write_text("2000000")  # began again at 100 J
    assert meter.take() == pytest.approx(6.5)
    assert meter.take() == 0


def test_without_a_counter_a_line_says_so(tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert energy.open_meter(torch.device("cpu")) is None
    assert "energy is not measured: no RAPL processor package" in capsys.readouterr().out


def test_the_training_log_records_session_and_joules(tmp_path):
    reading = iter([0.0, 7.0])
    meter = EnergyMeter("a counter", [(lambda: next(reading), math.inf)])
    session = {"ranks": 1, "flops_per_token": 10, "flops_spared": 5, "peak_flops": 1e3}
    session |= {"flops_unsampled": 2}
    log = TrainLog(tmp_path, "base", session, 0, meter)

    class State:
        num_steps, step, seconds, average_loss = 1, 1, 0.5, 2.0

    log(State, {"step": 1, "dt": 0.5, "tokens_computed": 10, "tokens": 6, "lr": 1.0})
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["session"] == session | {"energy_source": "a counter"} and first["step"] == 0
    assert second["joules"] == 7.0 and second["mfu"] == 0.136
    assert second["flops"] == 6 * (10 - 2) + 4 * 5  # four tokens had no target


def test_a_meter_that_fails_ends_the_measurement_and_not_the_training(tmp_path, capsys, stages):
    def read():
        raise OSError("gone")

    meter = EnergyMeter("a counter", [])
    meter.counters, meter.last = [(read, math.inf)], [0.0]
    assert meter.record(at_end=True) == {"joules": None} and meter.record(at_end=True) == {}
    assert "energy is no longer measured: gone" in capsys.readouterr().out
    base = stages[0]
    base.steps[-1]["joules"] = None
    assert base.energy[1].startswith("estimated")


# ---------------------------------------------------------------- the page


class Reader(HTMLParser):
    """Tables as lists of rows, headline facts, and every tag with its attributes."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.rows, self.text, self.cell = [], [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        self.text.append(data)
        if self.cell is not None:
            self.cell += data


def test_what_is_shown_is_what_was_recorded(page):
    html, markdown = to_html(page), to_markdown(page)
    rows = {row[0]: row[1:] for row in Reader(html).rows if row}
    assert rows["piqa"] == ["75.0% ± 3.0%", "0.5000 ± 0.0600", "1,838", "0.246", "0.450"]
    assert rows["CORE"][1] == "0.4000 ± 0.0316"
    assert rows["gsm8k"] == ["10.0% ± 2.0%", "1,319", "0.0%"]
    assert rows["arc-easy, sft"] == ["43.8% ± 3.0%", "26.2% ± 2.7%", "+17.5 points"]
    assert rows["humaneval pass@10"][0] == "12.5%" and rows["ChatCORE"][0] == "0.1750 ± 0.0224"
    total = ["all", "54.0 s", "$0.36", "8 Wh", "3.85 g"]
    assert total in Reader(html).rows
    facts = {label: value for label, value, _ in page.facts}
    assert facts["MFU"] == "25.0%" and facts["Bits per byte"] == "1.2345"
    assert facts["Cost"] == "$0.36" and facts["Training FLOPs"] == "8.00e+05"
    for row in (rows["piqa"], total, facts.values()):
        assert all(value in markdown for value in row)
    assert "python -m scripts.base_train --depth=2" in markdown


def test_what_was_not_measured_is_not_there():
    page = make_page(lineage(make_base(evaluated=False)))
    html = " ".join(Reader(to_html(page).split("</style>")[1]).text)
    for shown in (html, to_markdown(page)):
        for word in ("CORE", "ChatCORE", "Chat tasks", "Tokenizer", "Samples", "Cost", "$", "sft"):
            assert word not in shown, word
        assert not re.findall(r"None|\bnan\b|N/A|n/a|TODO|TBD|\| - \||\?", shown)
        assert "1.2500" in shown and "1 Wh" in shown


def test_a_checkpoint_without_metrics_still_has_a_page():
    page = make_page(lineage(save(1)))
    html = to_html(page)
    assert [label for label, *_ in page.facts] == ["Parameters"]
    assert "<svg" not in html and "Training by stage" not in html


def test_a_model_s_words_stay_words(page):
    html, markdown = to_html(page), to_markdown(page)
    reader = Reader(html)
    tags = {tag for tag, _ in reader.tags}
    assert "script" not in tags and not {"iframe", "img", "object"} & tags
    assert "".join(reader.text).count(HOSTILE) == 2  # a sample and an answer, word for word
    blocks = re.findall(r"^```+text\n.*?^```+$", markdown, flags=re.S | re.M)
    assert sum(HOSTILE in block for block in blocks) == 2
    assert markdown.count(HOSTILE) == 2
    handlers = [name for _, attributes in reader.tags for name in attributes if name[:2] == "on"]
    assert not handlers


def test_markup_in_cells_is_escaped():
    table = Table("a | <b>", ["x", "y"], [["<i>", "1 | 2"]])
    page = Page("<t>", "", [("<l>", "<v>", "")], [Section("S", [table, Sample("```", "<u>")])], "")
    assert not {tag for tag, _ in Reader(to_html(page)).tags} & {"b", "i", "t", "l", "v", "u"}
    markdown = to_markdown(page)
    assert "| &lt;i> | 1 \\| 2 |" in markdown and "````text" in markdown


def test_an_empty_column_is_left_out():
    table = Table("", ["a", "b", "c"], [["x", "", "1"], ["y", "", ""]])
    assert table.headers == ["a", "c"] and table.rows == [["x", "1"], ["y", ""]]


def test_tokenizer_table_is_shown_for_the_run_s_own_tokenizer_alone(tmp_path):
    text = {"kind": "code", "characters": 300, "tokens": {"ours": 100, "GPT-2": 110}}
    record = {"fingerprint": "f", "vocab_size": 8192, "texts": [text]}
    (tmp_path / "tok_eval.json").write_text(json.dumps(record))
    (table,) = tokenizer_section(tmp_path, "f").blocks
    assert table.rows == [["code", "300", "3.000", "2.727", "+10.0%"]]
    assert not tokenizer_section(tmp_path, "another").blocks
    assert not tokenizer_section(tmp_path / "none", "f").blocks


def test_the_ticks_of_two_close_values_are_short():
    points = {"": [(0, 0.18931), (112, 0.18932)]}
    svg = lines("t", points, "step", "unit", from_zero=False).svg
    ticks = re.findall(r">(0\.\d+)<", svg)
    assert len(ticks) > 2 and max(map(len, ticks)) <= len("0.175")


def test_curves_are_smoothed_and_take_the_page_s_colours():
    assert running_mean([0, 3, 0]).tolist() == [1.5, 1, 1.5]
    svg = lines('A "title" <x>', {"": [(1, 3), (2, 4)]}, "step", "unit").svg
    assert svg.startswith("<svg") and "var(--c1)" in svg and SERIES[0] not in svg
    assert 'aria-label="A &quot;title&quot; &lt;x&gt;"' in svg
    ids = re.findall(r' id="([^"]+)"', svg)
    assert ids and all(name.startswith("A-title-x-") for name in ids)
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
    assert set(used) <= set(ids)


# ---------------------------------------------------------------- files


def test_remaking_never_fails_what_called_it(capsys, monkeypatch):
    save(1)
    remake("tiny")
    assert "report.html" in capsys.readouterr().out
    remake("nobody")
    assert "the report of nobody was not made: CheckpointError" in capsys.readouterr().out
    monkeypatch.setattr(report, "make_page", lambda *a: 1 / 0)
    remake("tiny")
    assert "was not made: ZeroDivisionError" in capsys.readouterr().out


def test_the_script_prints_tables_writes_files_and_remembers_the_price(stages, capsys, monkeypatch):
    script = importlib.import_module("scripts.report")
    monkeypatch.setattr(sys, "argv", ["report", "--model-tag=tiny", "--price-per-hour=24"])
    cli(script.main, script.Config)
    out = capsys.readouterr().out
    assert re.search(r"gsm8k .*10.0% ± 2.0%", out) and re.search(r"base .* 4 ", out)
    page = Path(re.search(r"report: +(\S+report\.html)", out)[1])
    written = {"report.html", "report.md", "model_card.md", "assumptions.json"}
    assert {path.name for path in page.parent.iterdir()} == written
    assert "$0.36" in (page.parent / "report.md").read_text()
    again = lineage(newest_checkpoint("tiny"), Assumptions(watts=100))[0].assumed
    assert again == Assumptions(price_per_hour=24, watts=100)


@pytest.mark.slow
def test_the_page_in_a_browser_asks_for_nothing_and_fits_a_phone(page, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs chromium, which is not on the PATH")
    page_file = tmp_path / "report.html"
    page_file.write_text(to_html(page))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for width, scheme in ((390, "dark"), (1280, "light")):
            tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            said, asked = [], []
            tab.on("console", lambda message, said=said: said.append(message.text))
            tab.on("pageerror", lambda error, said=said: said.append(str(error)))
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.goto(page_file.as_uri())
            assert said == [] and asked == [page_file.as_uri()]
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (background == "rgb(20, 21, 23)") == (scheme == "dark")
            line = tab.locator("[id^='base-loss-line2d'] path").last
            stroke = line.evaluate("e => getComputedStyle(e).stroke")
            assert stroke in ("rgb(122, 179, 242)", "rgb(31, 95, 168)")
            assert tab.locator("svg[role=img]:not([aria-label])").count() == 0
        browser.close()


def test_the_made_run_is_consistent():
    assert CORE["core"] == (CORE["core/piqa"] + CORE["core/lambada_openai"]) / 2
    assert CHAT["chatcore"] == (CHAT["centred/arc-easy"] + CHAT["centred/gsm8k"]) / 2
