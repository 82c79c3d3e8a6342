"""Measures a base model: bits per byte of train and validation text, a few samples, and CORE.

python -m scripts.base_eval --core
python -m scripts.base_eval --core --max-per-task=500 --hf-path=./gpt2
torchrun --standalone --nproc_per_node=8 -m scripts.base_eval -- --model-tag=d20 --core

CORE is 22 tasks (arXiv:2406.11794). Figures go to the run's metrics.jsonl, samples to
samples-step<n>.json beside it; those of a Hugging Face folder to hf_evaluations/<its name>.
"""

from dataclasses import dataclass
from pathlib import Path

from nanochat.common import compute_cleanup, compute_init, print0
from nanochat.configurator import cli
from nanochat.data.sources import open_source
from nanochat.dataloader import PackedRows, tokenize_source
from nanochat.evaluation.core import evaluate_core, record
from nanochat.evaluation.core_bundle import find_bundle
from nanochat.evaluation.documents import DocumentRows
from nanochat.evaluation.hf_baseline import open_engine
from nanochat.evaluation.samples import write_samples
from nanochat.report.report import remake
from nanochat.training.log import append_metrics
from nanochat.training.validation import measure_rows


@dataclass(frozen=True)
class Config:
    source: str = "base"
    """Stage of the model (base, mid, sft, rl), or a checkpoint's folder."""
    model_tag: str | None = None
    """Run to take; default: the newest."""
    step: int | None = None
    """Its step; default: the newest."""
    hf_path: Path | None = None
    """Folder of any Hugging Face model instead; its bits per byte are not measured."""
    data: str | None = None
    """Text to measure on, as in base_train; default: what the run was trained on."""
    num_shards: int | None = None
    """Train shards of a hub data set to use; default: as the run did."""
    eval_tokens: int = 10 * 524_288
    """Tokens of each split, at most; 0: no bits per byte."""
    device_batch_size: int = 8
    """Rows of the context's length that one device computes at a time."""
    sample_tokens: int = 32
    """Length of a sample; 0: no samples."""
    core: bool = False
    """Measure CORE."""
    max_per_task: int | None = None
    """Examples of each CORE task, at most; default: all."""
    bundle: Path | None = None
    """The evaluation bundle of CORE, a zip or folder; default: downloaded once."""
    seed: int = 42
    """Of the choice of rows, and of the unprompted samples."""
    device_type: str = "auto"
    """auto, cuda, mps or cpu."""


def bits_per_byte(model, tokenizer, trained: dict, config: Config) -> dict[str, float]:
    """{"bpb/train": ..., "bpb/val": ..., "bpb/documents": ...}, printed too. The last is of whole
    validation documents; the others are of packed rows, as in training."""
    data = config.data or trained.get("data", "packaged")
    same = {} if config.data else trained
    column, max_malformed = same.get("column", "text"), same.get("max_malformed")
    num_shards = config.num_shards or trained.get("num_shards")
    source = open_source(data, num_shards, column, max_malformed)
    found = {}
    if trained.get("document_mask"):
        model.document_start = tokenizer.bos
    for split in ("train", "val"):
        shards = tokenize_source(source, tokenizer, split)
        context = model.config.sequence_len
        kinds = {split: PackedRows(shards, context, config.seed)}
        if split == "val":
            kinds["documents"] = DocumentRows(shards, context)
        for name, rows in kinds.items():
            bits, num_bytes = measure_rows(
                model, tokenizer, rows, config.eval_tokens, config.device_batch_size
            )
            print0(f"{name}: {bits:.4f} bits per byte, measured on {num_bytes:,} bytes")
            found[f"bpb/{name}"] = bits
    return found


def main(config: Config) -> None:
    *_, device = compute_init(config.device_type)
    bundle = find_bundle(config.bundle) if config.core else None  # so that it fails early
    engine, folder, place, trained = open_engine(config, device)
    if trained is None:
        print0("bits per byte are not measured: they need one of our tokenizers")
    elif config.eval_tokens:
        bits = bits_per_byte(engine.model, engine.tokenizer, trained, config)
        append_metrics(folder, place | bits)
    if config.sample_tokens:
        path = folder / f"samples-step{place['step']}.json"
        write_samples(engine, config.sample_tokens, config.seed, path)
    if bundle:
        results = evaluate_core(
            bundle,
            engine.fused,
            engine.tokenizer,
            max_per_task=config.max_per_task,
            tokens_at_once=config.device_batch_size * engine.model.config.sequence_len,
        )
        figures = record(results)
        print0("CORE: {core:.4f} ± {core_stderr:.4f}".format(**figures))
        append_metrics(folder, place | figures)
    if trained is not None:
        remake(folder.name)
    compute_cleanup()


if __name__ == "__main__":
    cli(main, Config)
