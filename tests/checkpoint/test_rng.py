"""Random generators come back exactly; a different machine is named."""

import json

import torch

from nanochat.checkpoint.rng import capture_rng, environment, print_differences, restore_rng


def test_generator_goes_on_as_captured_after_a_trip_through_json():
    torch.rand(3)
    saved = json.loads(json.dumps(capture_rng()))
    expected = torch.randn(5), torch.randint(1000, (5,))
    torch.manual_seed(999)
    restore_rng(saved)
    assert torch.equal(torch.randn(5), expected[0])
    assert torch.equal(torch.randint(1000, (5,)), expected[1])


def test_same_environment_says_nothing():
    now = environment(torch.device("cpu"))
    assert print_differences(json.loads(json.dumps(now)), torch.device("cpu")) == []
    assert now["threads"] == torch.get_num_threads() and now["ranks"] == 1


def test_each_difference_prints_a_line(capsys):
    now = environment(torch.device("cpu"))
    saved = {**now, "torch": "1.0", "ranks": 8}
    lines = print_differences(saved, torch.device("cpu"))
    assert len(lines) == 2 and capsys.readouterr().out.splitlines() == lines
    assert "torch" in lines[0] and "1.0" in lines[0] and "8, now 1" in lines[1]
