"""hardware.py: which card a name means; measured speed; memory."""

import math

import pytest
import torch

from nanochat import hardware
from nanochat.hardware import find_card, measure_peak_flops, peak_flops

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "name, product",
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100-PCIE"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("Tesla V100-PCIE-16GB", "V100-PCIE"),
        ("Tesla T4", "T4"),
    ],
)
def test_a_name_means_one_card(name, product):
    assert find_card(name)[0] == product


@pytest.mark.parametrize(
    "name",
    ["NVIDIA A10G", "NVIDIA T4G", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D",
     "NVIDIA GeForce RTX 4080 SUPER", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "cpu AMD EPYC"],
)  # fmt: skip
def test_a_card_that_is_not_in_the_table_is_not_taken_for_another(name):
    assert find_card(name) is None


def test_the_peak_of_a_known_card_is_its_data_sheet_s(monkeypatch):
    monkeypatch.setattr(hardware, "device_name", lambda device: "NVIDIA H100 NVL")
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == (835.5e12, "data sheet, H100 NVL")


def test_measured_speed_is_a_plausible_number():
    flops = measure_peak_flops(CPU, torch.float32)
    assert math.isfinite(flops) and 1e6 < flops < 1e16


def test_peak_of_a_cpu_is_measured_and_says_so(monkeypatch):
    monkeypatch.setattr(hardware, "measure_peak_flops", lambda device, dtype: 123.0)
    flops, source = peak_flops(CPU, torch.bfloat16)
    assert flops == 123.0
    assert "measured" in source
