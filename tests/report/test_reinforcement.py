"""What a report says of reinforcement learning, worked out by hand."""

from made_run import SESSION, make_base, write
from tiny_checkpoint import save

from nanochat.report.reinforcement import paired_difference, rl_section
from nanochat.report.run import lineage


def measured(step: int, greedy: float, right: str) -> list[dict]:
    figures = {"greedy": greedy, "greedy_stderr": 0.25, "pass@1": greedy / 2, "pass@4": 1.0}
    record = {f"held_out/{name}": value for name, value in figures.items()}
    return [{"step": step, "held_out/right": right}, {"step": step, **record}]


def make_rl(tag: str, advantage: str, after: str, parent):
    """Two steps of 30 s, of which 15 and 18 were sampling, between two measurements."""
    share = after.count("1") / 4
    records = [{"step": 0, "session": SESSION}, *measured(0, 0.25, "0010")]
    for step, seconds in ((1, 15.0), (2, 18.0)):
        sampled = {"rl/rollout_seconds": seconds, "rl/rollout_tokens_per_second": 200.0}
        records += [{"step": step, **sampled}, {"step": step, "dt": 30.0, "loss": 0.1}]
    config = {"task": "spell", "policy": {"advantage": advantage}}
    run = {"config": config, "parent": str(parent), "data_fingerprint": "f"}
    folder = save(2, stage="rl", tag=tag, run=run)
    write(folder.parent, "rl", [*records, *measured(2, share, after)])
    return folder


def test_a_paired_difference_by_hand():
    assert paired_difference("0010", "1110") == (0.5, 0.25)
    assert paired_difference("01", "01") == (0.0, 0.0)


def test_runs_from_one_model_are_compared_and_others_are_not():
    base = make_base()
    make_rl("mine-rejection", "rejection", "0011", base)
    make_rl("another", "group_mean", "1111", base.parent / "step_000001")
    stages = lineage(make_rl("mine", "group_mean", "1110", base))
    figures, table, runs = rl_section(stages, figures=True).blocks
    assert len(figures) == 2
    assert all("mine-rejection" in figure.svg and "another" not in figure.svg for figure in figures)
    assert table.headers == ["step", "likeliest answer", "pass@1", "pass@4"]
    assert table.rows[1] == ["2", "75.0% ± 25.0%", "37.5%", "100.0%"]
    gained = ["2", "1.0", "25.0% to 75.0%", "+50.0 ± 25.0 points", "12.5% to 37.5%", "200", "55%"]
    assert runs.rows[0] == ["mine", "reward - group's mean", *gained]
    assert [row[:2] for row in runs.rows[1:]] == [["mine-rejection", "1 if right, else 0"]]


def test_without_a_measurement_there_is_no_section():
    assert rl_section(lineage(make_base())).blocks == []
