"""Pretrains the base model on raw text.

    python -m scripts.base_train --depth=4 --head-dim=64 --data=packaged --sequence-len=256
    torchrun --standalone --nproc_per_node=8 -m scripts.base_train -- --depth=20

Everything follows from --depth: the width is 64 x depth, the horizon 20 tokens a parameter.
"""

from dataclasses import dataclass
from functools import partial

from nanochat.common import ConfigError, choose_dtype, print0
from nanochat.configurator import cli
from nanochat.data.sources import open_source
from nanochat.data.word_vectors import begin_with_word_vectors
from nanochat.dataloader import PackedRows, tokenize_source
from nanochat.engine import Engine
from nanochat.files import base_dir
from nanochat.gpt import GPT, GPTConfig
from nanochat.publishing.beginning import find_parent
from nanochat.publishing.train_and_report import train_and_report
from nanochat.report.planning import print_plan
from nanochat.tokenizer import Tokenizer
from nanochat.train import Periodic
from nanochat.training.config import StageConfig
from nanochat.training.stage import Stage, StageData

PROMPTS = ("The capital of France is", "Once upon a time", "My fellow citizens,")

MODEL = ("plan", "depth", "width", "head_dim", "num_kv_heads", "sequence_len", "logit_softcap")
MODEL += ("tie_word_embeddings", "word_vectors")  # settings of a new model


@dataclass(frozen=True)
class Config(StageConfig):
    depth: int = 20
    """Layers."""
    width: int | None = None
    """Model width, rounded up to whole heads; default: 64 x depth."""
    head_dim: int = 128
    """Width of an attention head; 64 for tiny models."""
    num_kv_heads: int | None = None
    """Key/value heads, a divisor of the heads; default: as many."""
    sequence_len: int = 2048
    """Context, in tokens."""
    logit_softcap: float | None = 15.0
    """Soft-cap of the logits; None switches it off."""
    tie_word_embeddings: bool = False
    """Use one matrix as embedding and head; better for tiny models."""
    word_vectors: float | None = None
    """Begin the embedding with vectors counted from the text, of this standard deviation (a tied
    one: 0.15), not at random; for tiny models, on one device."""
    data: str = "karpathy/fineweb-edu-100b-shuffle"
    """A hub data set, fineweb-edu, climbmix, a local folder, or packaged."""
    column: str = "text"
    """Of tables: the one with the text."""
    num_shards: int | None = 240
    """Train shards of a hub data set to use."""
    local_data: bool = False
    """Each node has its own disk, and one rank of each tokenizes."""
    total_batch_size: int = 524_288
    """Tokens of one step, over all ranks."""
    tokens_per_param: float = 20.0
    """Horizon in tokens per parameter, unless another is given."""
    target_tokens: int | None = None
    """Horizon in tokens."""
    target_flops: float | None = None
    """Horizon in training FLOPs."""
    plan: bool = False
    """Train nothing; print what this run would take on --gpus of --gpu: memory, traffic, hours."""
    gpus: int = 8
    """Of the plan."""
    gpu: str = "H100"
    """Of the plan: B200, H200, H100 or A100."""
    sample_every: int = 2000
    """Steps between samples; 0: at the end alone, -1: never."""


def horizon(config: Config, model: GPT, tokens_per_step: int) -> int:
    """Steps that the config's tokens or FLOPs take."""
    tokens = config.target_tokens or config.tokens_per_param * model.num_params()
    if config.target_flops:
        tokens = config.target_flops / model.flops_per_token(config.sequence_len)
    return max(1, round(tokens / tokens_per_step))


def new_model(config: Config, device) -> tuple[GPT, Tokenizer]:
    """The untrained model, and the tokenizer that tok_train left."""
    tokenizer = Tokenizer.load(base_dir() / "tokenizer")
    names = ("width", "sequence_len", "logit_softcap", "tie_word_embeddings")
    overrides = {name: getattr(config, name) for name in names}
    if config.num_kv_heads:
        overrides["n_kv_head"] = config.num_kv_heads
    shape = GPTConfig.from_depth(config.depth, tokenizer.vocab_size, config.head_dim, **overrides)
    model = GPT(shape, config.seed).to(device)
    model.compute_dtype = choose_dtype(device)[0]
    return model, tokenizer


def main(config: Config) -> None:
    given = [name for name in MODEL if getattr(config, name) != getattr(Config, name)]
    if config.from_ and given:
        raise ConfigError(f"--from {config.from_} has a shape of its own; leave out --{given[0]}")
    if config.plan:
        print_plan(config)
        return
    make, tag = partial(new_model, config), f"d{config.depth}"
    stage = Stage("base", config, parent=find_parent(config), tag=tag, new_model=make)
    model, tokenizer = stage.model, stage.tokenizer
    T = model.config.sequence_len
    print0(
        f"d{model.config.n_layer}, width {model.config.n_embd}: {model.num_params():,} parameters, "
        f"{model.flops_per_token() / 1e6:,.1f} MFLOPs a token"
    )
    plan = stage.plan_batch(max(1, round(config.total_batch_size / T)), T)
    planned_steps = horizon(config, model, plan.rows_per_step * T)
    source = open_source(config.data, config.num_shards, config.column, config.max_malformed)
    rows, val_rows = (
        PackedRows(tokenize_source(source, tokenizer, split, config.local_data), T, config.seed)
        for split in ("train", "val")
    )
    print0(rows.describe())
    if config.word_vectors is not None and stage.resume_from is None:
        tokens = [shard.tokens for shard in rows.shards.shards]
        pieces, std = tokenizer.pieces(), config.word_vectors
        begin_with_word_vectors(model.model.embed_tokens, tokens, pieces, std, config.seed)

    def sample(state) -> None:
        prompts = [[tokenizer.bos, *tokenizer.encode_ordinary(text)] for text in PROMPTS]
        try:  # subtle: whatever goes wrong, a training does not end for its samples
            engine = Engine(model, tokenizer, max_batch=len(PROMPTS))
            completions = engine.complete(prompts, max_tokens=24, temperature=0)
        except Exception as error:
            print0(f"no samples: {type(error).__name__}: {error}")
            return
        for prompt, (completion, *_) in zip(PROMPTS, completions, strict=True):
            print0(f"  {prompt}{completion}".replace("\n", " "))

    report = {"source": source.name, "tokens": rows.shards.num_tokens}
    data = StageData(rows, val_rows, source.fingerprint, report, planned_steps)
    train_and_report(stage, data, plan, (Periodic(sample, config.sample_every),))


if __name__ == "__main__":
    cli(main, Config)
