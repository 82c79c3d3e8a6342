"""Which model fits a machine and the time that somebody has."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from nanochat.common import ConfigError, choose_dtype
from nanochat.gpt import GPTConfig
from nanochat.hardware import device_name, peak_flops
from nanochat.report.planning import Setting, flops_per_token, num_params, rows_that_fit

DEPTHS = (4, 6, 8, 10, 12, 14, 16, 18, 20)
VOCAB_SIZE, SEQUENCE_LEN = 32_768, 1_024
SHARE_OF_PEAK = 0.3  # that training reaches: an assumption, below what was measured on an H100
TOKENS_PER_PARAM = 4  # at least; 20 use the compute best, and take longer than most wait
LEAST_ROWS = 4  # of a micro-batch; fewer leave a GPU idle
TOKENS_PER_SHARD = 46e6  # of FineWeb-EDU: 240 hold the 11.2e9 tokens of depth 20
SECONDS_BETWEEN_SAVES = 1200
# speedrun.sh's recipe for a CPU; the mixtures are for 15 minutes
PACKAGED_TOKENIZER = "facts:3.3,identity:7,unknown:3.9,spelling:1.12,arithmetic:1.55"
PACKAGED_MID = {"facts": 7, "identity": 31, "unknown": 9.5, "spelling": 2.5, "arithmetic": 6}
PACKAGED_SFT = {
    "facts": 0.2, "identity": 0.16, "unknown": 0.14, "spelling": 0.05, "arithmetic": 0.06
}  # fmt: skip
CPU_RATES = {
    "muon_iterations": 3, "matrix_lr": 0.03, "adamw_beta2": 0.999, "unembedding_lr": 0.002,
    "share_letter_cases": True,
}  # fmt: skip
CPU_ALL = CPU_RATES | {"document_mask": True}
CPU_SAMPLED = CPU_ALL | {"sampled_ids": 1500}
CPU_FLAGS = {
    "tok_flags": {"mixture": PACKAGED_TOKENIZER, "whole_numbers": True},
    "base_flags": CPU_SAMPLED | {"word_vectors": 0.15},
    "mid_flags": CPU_SAMPLED | {"go_on": 0.6},
    "sft_flags": CPU_ALL | {"max_tokens": 64, "examples_per_step": 36},
}
HUB_MID = "smoltalk:0.2,mmlu:0.2,gsm8k:1,identity:2,spelling:0.3,arithmetic:0.3"
HUB_SFT = "smoltalk:0.02,arc-easy:1,arc-challenge:1,gsm8k:1,identity:1,spelling:0.02"


class Machine(NamedTuple):
    """What a training runs on."""

    kind: str  # cuda or cpu
    name: str
    flops: float  # peak FLOP/s in the dtype that it computes in
    memory: float  # bytes of the GPU; of a CPU it is not asked
    dtype: str

    def __str__(self) -> str:
        memory = f", {self.memory / 1e9:.1f} GB" if self.memory else ""
        return f"{self.name}{memory}: {self.flops / 1e12:.3g} TFLOP/s in {self.dtype}"


def this_machine() -> Machine:
    """By its capability and memory; a card that no table has is measured, as a CPU is."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, reason = choose_dtype(device)
    cuda, memory = device.type == "cuda", 0.0
    if cuda:
        memory = torch.cuda.get_device_properties(device).total_memory
    shown = f"{str(dtype).removeprefix('torch.')} ({reason})"
    return Machine(device.type, device_name(device), peak_flops(device, dtype)[0], memory, shown)


@dataclass(frozen=True)
class Settings:
    """What the stages are given."""

    data: str
    num_shards: int
    max_chars: int  # of the tokenizer's training
    depth: int
    head_dim: int
    sequence_len: int
    vocab_size: int
    tied: bool  # embedding and head are one matrix
    base_seconds: int
    mid_seconds: int
    sft_seconds: int
    base_tokens_per_step: int
    mid_tokens_per_step: int
    eval_tokens: int
    save_every: int
    mid_mixture: str
    sft_mixture: str
    val_mixture: str
    tasks: str
    questions: int  # of each task
    # other flags of the scripts
    tok_flags: dict = field(default_factory=dict)
    base_flags: dict = field(default_factory=dict)
    mid_flags: dict = field(default_factory=dict)
    sft_flags: dict = field(default_factory=dict)

    def __str__(self) -> str:
        minutes = (self.base_seconds + self.mid_seconds + self.sft_seconds) / 60
        return (
            f"depth {self.depth}, rows of {self.sequence_len:,} tokens, {self.vocab_size:,} ids, "
            f"data {self.data}; {minutes:.0f} minutes of training: base {self.base_seconds} s, "
            f"mid {self.mid_seconds} s, SFT {self.sft_seconds} s"
        )


def model(depth: int) -> GPTConfig:
    return GPTConfig.from_depth(depth, VOCAB_SIZE, 128, sequence_len=SEQUENCE_LEN)


def choose_depth(machine: Machine, base_seconds: float) -> int:
    """The largest depth that fits the memory, and that sees enough text in the time; at least the
    smallest that fits."""
    fits = [d for d in DEPTHS if rows_that_fit(Setting(model(d)), machine.memory) >= LEAST_ROWS]
    if not fits:
        raise ConfigError(
            f"{machine.name} has {machine.memory / 1e9:.1f} GB, too little for depth {DEPTHS[0]} "
            f"and rows of {SEQUENCE_LEN:,} tokens; choose another GPU: Runtime, Change runtime type"
        )
    flops = SHARE_OF_PEAK * machine.flops * base_seconds
    tokens = {depth: flops / flops_per_token(model(depth)) for depth in fits}
    enough = [d for d in fits if tokens[d] >= TOKENS_PER_PARAM * num_params(model(d))]
    return max(enough, default=fits[0])


def scaled(mixture: dict[str, float], minutes: float) -> str:
    """Example: scaled({"facts": 6.5}, 30) == "facts:13.000" """
    return ",".join(f"{name}:{epochs * minutes / 15:.3f}" for name, epochs in mixture.items())


def choose(machine: Machine, minutes: float, data: str = "auto", depth: int = 0) -> Settings:
    """The settings for a machine and minutes of training. data: "auto", or as base_train's --data;
    depth: 0 chooses it. Without a GPU: three layers of width 128."""
    if minutes <= 0:
        raise ConfigError(f"MINUTES is {minutes:g}; expected more than 0")
    gpu = machine.kind == "cuda"
    if data == "auto":
        data = "fineweb-edu" if gpu else "packaged"
    packaged = data == "packaged" or not gpu
    shares = (0.6, 0.3, 0.1) if gpu else (0.015, 0.975, 0.01)
    base, mid, sft = (max(1, round(60 * minutes * share)) for share in shares)
    shape = {"depth": depth or 3, "head_dim": 64, "sequence_len": 256, "vocab_size": 8192}
    steps = {"base_tokens_per_step": 2048, "mid_tokens_per_step": 4096, "save_every": 200}
    flags = {} if gpu else dict(CPU_FLAGS)
    if not gpu and shape["depth"] == 3:
        flags["base_flags"] = flags["base_flags"] | {"width": 128}
    num_shards, max_chars, eval_tokens = 2, 50_000_000, 20_000
    if gpu:
        depth = depth or choose_depth(machine, base)
        per_step = 131_072 if depth < 12 else 524_288
        speed = SHARE_OF_PEAK * machine.flops / flops_per_token(model(depth))
        num_shards = 2 + int(1.5 * speed * base / TOKENS_PER_SHARD)
        save_every = max(10, round(SECONDS_BETWEEN_SAVES * speed / per_step))
        shape = {"depth": depth, "head_dim": 128, "sequence_len": SEQUENCE_LEN}
        shape |= {"vocab_size": VOCAB_SIZE}
        steps = dict.fromkeys(("base_tokens_per_step", "mid_tokens_per_step"), per_step)
        steps |= {"save_every": save_every}
        max_chars, eval_tokens = 250_000_000, 1_000_000
    return Settings(
        data=data, num_shards=num_shards, max_chars=max_chars, **shape, **steps, **flags,
        tied=not gpu, base_seconds=base, mid_seconds=mid, sft_seconds=sft, eval_tokens=eval_tokens,
        mid_mixture=scaled(PACKAGED_MID, 15 if gpu else minutes) if packaged else HUB_MID,
        sft_mixture=scaled(PACKAGED_SFT, 15 if gpu else minutes) if packaged else HUB_SFT,
        val_mixture="spelling:0.1,arithmetic:0.1" if packaged else "smoltalk:0.05,gsm8k:0.3",
        tasks="arithmetic|spell|count|facts|identity|unknown|free|talk" if packaged
        else "arc-easy|arc-challenge|mmlu|gsm8k|arithmetic|spelling|identity",
        questions=400 if minutes >= 10 else 40,
    )  # fmt: skip
