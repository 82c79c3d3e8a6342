"""Random generators come back exactly; a different machine is named."""

import json

import torch
from safetensors.torch import load, save

from nanochat.checkpoint.rng import capture_rng, environment, print_differences, restore_rng


def test_generator_goes_on_as_captured_after_a_trip_through_a_file():
    torch.rand(3)
    saved = load(save(capture_rng()))
    expected = torch.randn(5), torch.randint(1000, (5,))
    torch.manual_seed(999)
    restore_rng(saved)
    assert torch.equal(torch.randn(5), expected[0])
    assert torch.equal(torch.randint(1000, (5,)), expected[1])


def test_each_difference_of_the_environment_prints_a_line(capsys):
    now = environment(torch.device("cpu"))
    assert f"({torch.get_num_threads()} threads)" in now["device"] and now["ranks"] == 1
    print_differences(json.loads(json.dumps(now)), torch.device("cpu"))
    assert capsys.readouterr().out == ""
    print_differences({**now, "torch": "1.0", "ranks": 8}, torch.device("cpu"))
    first, second = capsys.readouterr().out.splitlines()
    assert "other torch: saved with 1.0" in first and "8, now 1" in second
