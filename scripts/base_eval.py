"""Measures a base model: bits per byte of train and validation text, and a few samples.

python -m scripts.base_eval
torchrun --standalone --nproc_per_node=8 -m scripts.base_eval -- --model-tag=d20
"""

from dataclasses import dataclass
from pathlib import Path

from nanochat.checkpoint_manager import load_model
from nanochat.common import compute_cleanup, compute_init, print0
from nanochat.configurator import cli
from nanochat.dataloader import PackedRows, tokenize_source
from nanochat.dataset import open_source
from nanochat.engine import Engine
from nanochat.evals import measure_rows
from nanochat.metrics import append_metrics
from nanochat.report import remake

PROMPTS = (
    "The capital of France is",
    "The chemical symbol of gold is",
    "If yesterday was Friday, then tomorrow will be",
    "The opposite of hot is",
    "The planets of the solar system are:",
    "My favorite color is",
    "If 5*x + 3 = 13, then x is",
)


@dataclass(frozen=True)
class Config:
    source: str = "base"
    """Stage of the model (base, mid, sft, rl), or a checkpoint's folder."""
    model_tag: str | None = None
    """Run to take; default: the newest."""
    step: int | None = None
    """Its step; default: the newest."""
    data: str | None = None
    """Text to measure on, as in base_train; default: what the run was trained on."""
    num_shards: int | None = None
    """Train shards of a hub data set to use; default: as the run did."""
    eval_tokens: int = 10 * 524_288
    """Tokens of each split, at most."""
    device_batch_size: int = 8
    """Rows that one device computes at a time."""
    sample_tokens: int = 32
    """Length of a sample; 0: no samples."""
    seed: int = 42
    """Of the choice of rows, and of the unprompted samples."""
    device_type: str = "auto"
    """auto, cuda, mps or cpu."""


def print_samples(engine: Engine, config: Config) -> None:
    """The likeliest continuations of some beginnings, and what comes out of nothing."""
    tokenizer = engine.tokenizer
    prompts = [[tokenizer.bos, *tokenizer.encode_ordinary(text)] for text in PROMPTS]
    completions = engine.complete(prompts, max_tokens=config.sample_tokens, temperature=0)
    for prompt, (completion,) in zip(PROMPTS, completions, strict=True):
        print0(f"  {prompt}|{completion}".replace("\n", " "))
    free = {"num_samples": 3, "max_tokens": 4 * config.sample_tokens, "seed": config.seed}
    for completion in engine.complete([[tokenizer.bos]], **free)[0]:
        print0(f"  |{completion}".replace("\n", " "))


def main(config: Config) -> None:
    *_, device = compute_init(config.device_type)
    model, tokenizer, meta = load_model(
        config.source, device, "eval", config.model_tag, config.step
    )
    print0(f"{meta['stage']} {meta['tag']}, step {meta['step']:,}")
    trained = meta["config"]
    source = open_source(
        config.data or trained.get("data", "packaged"),
        num_shards=config.num_shards or trained.get("num_shards"),
    )
    record = {"stage": meta["stage"], "step": meta["step"]}
    for split in ("train", "val"):
        shards = tokenize_source(source, tokenizer, split)
        rows = PackedRows(shards, model.config.sequence_len, config.seed)
        bits, num_bytes = measure_rows(
            model, tokenizer, rows, config.eval_tokens, config.device_batch_size
        )
        print0(f"{split}: {bits:.4f} bits per byte, measured on {num_bytes:,} bytes")
        record[f"bpb/{split}"] = bits
    append_metrics(Path(meta["path"]).parent, record)
    if config.sample_tokens:
        print_samples(Engine(model, tokenizer), config)
    remake(meta["tag"])
    compute_cleanup()


if __name__ == "__main__":
    cli(main, Config)
