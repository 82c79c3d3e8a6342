"""metrics.jsonl: appended, cut at resume, robust to a line that a crash cut short."""

import json
import time

from nanochat.training.log import METRICS, append_metrics, read_metrics, truncate_metrics


def test_records_come_back_in_order_with_the_time(tmp_path):
    before = time.time()
    for step in (1, 2):
        append_metrics(tmp_path / "run", {"stage": "base", "step": step, "loss": 0.1 + 0.2})
    first, second = read_metrics(tmp_path / "run")
    assert before <= first.pop("time") <= second.pop("time") <= time.time()
    assert first == {"stage": "base", "step": 1, "loss": 0.1 + 0.2} and second["step"] == 2


def test_lines_past_the_resumed_step_go(tmp_path):
    for step in (1, 2, 3, 2, 3):
        append_metrics(tmp_path, {"step": step})
    truncate_metrics(tmp_path, 2)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 2]
    truncate_metrics(tmp_path, -1)
    assert read_metrics(tmp_path) == []


def test_no_file_is_no_records_and_stays_no_file(tmp_path):
    truncate_metrics(tmp_path, 5)
    assert read_metrics(tmp_path) == [] and not list(tmp_path.iterdir())


def test_a_line_cut_short_costs_only_itself_and_is_counted(tmp_path, capsys):
    append_metrics(tmp_path, {"step": 1})
    with (tmp_path / METRICS).open("a") as file:
        file.write(json.dumps({"step": 2})[:5])
    append_metrics(tmp_path, {"step": 3})
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 3]
    assert "left out 1 lines" in capsys.readouterr().out


def test_lines_that_are_no_record_of_a_step_are_left_out_and_counted(tmp_path, capsys):
    lines = [b'{"step": 1}', b"[1]", b"3", b'{"loss": 1.0}', b'{"step": null}', b"\xff\xfe", b"",
             b'{"step": 2, "text": "a\xc2\x85b"}']  # fmt: skip
    (tmp_path / METRICS).write_bytes(b"\r\n".join(lines))
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2]
    assert "left out 5 lines" in capsys.readouterr().out
    truncate_metrics(tmp_path, 1)
    assert (tmp_path / METRICS).read_bytes() == b'{"step": 1}\n'
