"""The planner's arithmetic, against the model itself and by hand."""

from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest

from nanochat.gpt import GPT, GPTConfig
from nanochat.hardware import CARDS
from nanochat.report.links import LINKS
from nanochat.report.planning import (
    MEASURED_MFU,
    NODE,
    Setting,
    choices,
    efficiency,
    flops_per_token,
    memory,
    muon_flops,
    num_params,
    print_plan,
    rows_that_fit,
    send_seconds,
    step_seconds,
    traffic,
)
from scripts.base_train import Config

D20 = GPTConfig.from_depth(20, 65_536)


@pytest.mark.parametrize("kv", [2, 1])
def test_parameters_and_flops_are_the_models_own(kv):
    config = GPTConfig.from_depth(2, 128, head_dim=64, n_kv_head=kv)
    model = GPT(config, seed=None)
    assert num_params(config) == model.num_params()
    assert flops_per_token(config) == model.flops_per_token()
    assert num_params(D20) == 560_988_160


def test_muons_work_by_hand():
    """4 matrices of D x D: 5 (4 + 2) D^3 each; 2 of 4 D x D: 5 (16 + 2) D^3 each."""
    config = GPTConfig.from_depth(3, 128, head_dim=64)
    assert muon_flops(config) == 3 * (4 * 30 + 2 * 90) * 192**3


def test_memory_of_depth_20_on_one_gpu_is_what_was_measured():
    """64.9 GB with 32 rows, by bench/results/gpu_check-nvidia-h100-80gb-hbm3.json."""
    assert sum(memory(Setting(D20, rows=32)).values()) == pytest.approx(64.9e9, rel=0.05)


def test_traffic_by_hand():
    one = Setting(D20)
    assert set(traffic(one).values()) == {0}
    eight = traffic(replace(one, gpus=8, group=8))  # a row of 8 divides every dimension
    params = num_params(D20)
    assert eight["gather"] == 2 * params * 7 / 8 and eight["reduce"] == 4 * params * 7 / 8
    matrices = params - 2 * 65_536 * 1280
    assert eight["muon"] == pytest.approx(6 * matrices / 8 * 7 / 8) and eight["copies"] == 0
    nodes = traffic(replace(one, gpus=64, group=8))
    assert nodes["copies"] == pytest.approx(4 * params / 8 * 2 * 7 / 8)


def test_sharding_and_computing_again_take_less_memory_and_more_traffic():
    whole = Setting(GPTConfig.from_depth(32, 65_536), gpus=8, group=8, rows=8)
    shards = replace(whole, shard=True)
    again = replace(shards, checkpoint_blocks=32)
    sizes = [sum(memory(s).values()) for s in (whole, shards, again)]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(traffic(shards).values()) > sum(traffic(whole).values())
    assert rows_that_fit(again, 80e9) > rows_that_fit(shards, 80e9) > rows_that_fit(whole, 80e9)
    assert rows_that_fit(whole, 10e9) == 0


@pytest.mark.parametrize("depth", [20, 32])
def test_many_gpus_are_nearly_as_many_times_as_fast(depth):
    one_node = Setting(GPTConfig.from_depth(depth, 65_536), gpus=NODE, group=NODE, rows=8)
    assert 0.97 < efficiency(one_node, "H100") <= 1
    nodes = replace(one_node, gpus=64, group=64, rows=4)
    assert 0.95 <= efficiency(nodes, "H100") < efficiency(one_node, "H100")
    groups = replace(nodes, group=NODE)  # each node updates for itself
    assert efficiency(groups, "H100") < efficiency(nodes, "H100")
    assert efficiency(nodes, "H100") < efficiency(replace(nodes, reduce_itemsize=2), "H100")
    alone = step_seconds(Setting(one_node.model), "H100")["compute"]
    flops = flops_per_token(one_node.model) * 524_288
    assert alone == pytest.approx(flops / (MEASURED_MFU * CARDS["H100"].flops))


def test_seconds_of_a_collective_on_two_nodes_by_hand():
    s = Setting(D20, gpus=16, group=16)
    link = LINKS["H100"]
    hops = 14 * link.node_hop + link.network_hop
    assert send_seconds(s, "H100", 0, 1, 0) == pytest.approx(hops)
    assert send_seconds(s, "H100", 8e9, 0, 1 / 8) == pytest.approx(1e9 / link.network / 0.75)
    assert send_seconds(s, "H100", 8e9, 0, 0) == pytest.approx(8e9 / link.node / 0.75)


def table_of_scaling(heading: str) -> list[list[str]]:
    """Rows of the table of docs/scaling.md whose heading begins so."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "scaling.md").read_text()
    lines = text.split(heading, 1)[1].splitlines()[2:]
    rows = takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in row.strip("| ").split("|")] for row in rows]


def test_the_documents_hours_are_the_planners():
    columns = [(1, "H100"), (8, "H100"), (64, "H100"), (8, "H200"), (8, "B200"), (8, "A100")]
    rows = table_of_scaling("| depth | parameters |")
    assert [row[0] for row in rows] == ["12", "20", "26", "32", "40", "48"]
    for depth, parameters, *cells in rows:
        model = GPTConfig.from_depth(int(depth), 65_536)
        assert f"{num_params(model) / 1e9:.2f}e9" == parameters
        for (gpus, gpu), cell in zip(columns, cells, strict=True):
            _, way = choices(Setting(model, gpus), gpu)[0]
            if cell == "none fits":
                assert not way.rows
                continue
            hours, _, rows_that_fit_there = cell.partition(" (")
            seconds = 20 * num_params(model) / way.tokens_per_step
            seconds *= sum(step_seconds(way, gpu).values())
            rounding = 0.51 * 10.0 ** -len(hours.partition(".")[2])
            assert abs(float(hours) - seconds / 3600) <= rounding, (depth, gpus)
            assert rows_that_fit_there in ("", f"{way.rows})"), (depth, gpus)


def test_the_documents_shares_of_linear_are_the_planners():
    for depth, *cells in table_of_scaling("| depth | 8 GPUs |"):
        eight = Setting(GPTConfig.from_depth(int(depth), 65_536), gpus=8, group=8, rows=32)
        many = replace(eight, gpus=64, group=64, rows=4)
        ways = [eight, many, replace(many, reduce_itemsize=2), replace(many, group=8)]
        ways += [replace(many, rows=8, tokens_per_step=2**20)]
        shares = [efficiency(way, "H100") for way in ways]
        assert list(map(float, cells)) == pytest.approx(shares, abs=0.0006)


def test_the_page(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    print_plan(Config(depth=20, gpus=64))
    page = capsys.readouterr().out
    for words in ("560,988,160 parameters", "--shard --shard-group 64", "checkpoint-blocks 20"):
        assert words in page
