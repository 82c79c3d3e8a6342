"""Checkpoints: save and load. The only owner of the file names inside one.

A checkpoint is a complete Hugging Face model folder, without pickles. Sizes and SHA-256 of its
files stand in manifest.json, the last to be written.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from nanochat.checkpoint.hf_config import from_hf, to_hf
from nanochat.checkpoint.index import checkpoint_of, step_dir, verify
from nanochat.checkpoint.rng import capture_rng, environment, git_commit, versions
from nanochat.checkpoint.writing import copies_on_host, write_folder
from nanochat.common import CheckpointError, ConfigError, choose_dtype, rank_and_world
from nanochat.conversation import chat_template, plain_chat_template, stop_ids
from nanochat.files import read_json
from nanochat.gpt import EMBEDDING, GPT, HEAD, GPTConfig
from nanochat.tokenizer import Tokenizer

WEIGHTS, CONFIG, GENERATION = "model.safetensors", "config.json", "generation_config.json"
TEMPLATE, RUN, STATE, OPTIMIZER = "chat_template.jinja", "run.json", "state.json", "optimizer"
RNG = "rng/ranks.safetensors"  # not beside the model: some loaders take all tensors there


def prepare_checkpoint(
    stage: str,
    tag: str,
    step: int,
    *,
    model: GPT,
    tokenizer: Tokenizer,
    run: dict,
    state: dict,
    weights: dict | None = None,
    optimizers: dict | None = None,
) -> Callable[[], Path]:
    """Takes the present state, from a GPU as a copy in main memory; all ranks call it. Rank 0 then
    calls the result, now or beside the next steps: it writes the checkpoint and returns its folder.

    run: what describes the run (config, parent, data fingerprint, metrics). state: what the loop
    needs to continue. weights: default, the model's. optimizers: {name: its state tensors}.
    """
    final = step_dir(stage, tag, step)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model {model.config.vocab_size}; "
            f"a checkpoint holds the tokenizer that its weights were trained with"
        )
    place = {"stage": stage, "tag": tag, "step": step}
    texts = folder_texts(model.config, tokenizer, run, state, place, model.device)
    tensors = {WEIGHTS: weights or dict(model.named_parameters()), RNG: capture_rng()}
    tensors |= {f"{OPTIMIZER}/{name}.safetensors": t for name, t in (optimizers or {}).items()}
    if model.device.type == "cuda" and rank_and_world()[0] == 0:
        tensors = {name: copies_on_host(named) for name, named in tensors.items()}
    return lambda: write_folder(final, texts, tensors, tokenizer.fingerprint, place)


def folder_texts(
    config: GPTConfig, tokenizer: Tokenizer, run: dict, state: dict, place: dict, device
) -> dict[str, str]:
    """The text files of a checkpoint by name."""
    origin = {"versions": versions(), "git_commit": git_commit()}
    origin["tokenizer_fingerprint"] = tokenizer.fingerprint
    records = {
        RUN: {**run, **place, **origin},
        STATE: {**state, "step": place["step"], "environment": environment(device)},
    }
    return as_json(records) | hugging_face_texts(config, tokenizer)


def as_json(records: dict[str, dict]) -> dict[str, str]:
    return {name: json.dumps(record, indent=1) + "\n" for name, record in records.items()}


def hugging_face_texts(config: GPTConfig, tokenizer: Tokenizer, **settings) -> dict[str, str]:
    """The files that transformers reads beside the weights, by name. settings: more of config.json.

    Programs that do not know {% generation %} read tokenizer_config.json's template, transformers
    the file's.
    """
    records = hugging_face_records(config, tokenizer)
    records[CONFIG] |= settings
    more = {"model_max_length": config.sequence_len, "chat_template": plain_chat_template()}
    return as_json(records) | {TEMPLATE: chat_template()} | tokenizer.texts(**more)


def hugging_face_records(config: GPTConfig, tokenizer: Tokenizer) -> dict[str, dict]:
    """config.json, where pad is null, because transformers would freeze its embedding, and
    generation_config.json: an answer ends at either stop id, as in our own generators."""
    bos = {"bos_token_id": tokenizer.bos}
    ends = {"eos_token_id": tokenizer.special("<|assistant_end|>"), "pad_token_id": None}
    stops = {"eos_token_id": list(stop_ids(tokenizer)), "pad_token_id": tokenizer.bos}
    return {CONFIG: to_hf(config) | bos | ends, GENERATION: bos | stops}


def load_model(
    source: str | Path,
    device: torch.device | str,
    phase: str,
    model_tag: str | None = None,
    step: int | None = None,
) -> tuple[GPT, Tokenizer, dict]:
    """(model, tokenizer, run.json with "path") of a stage's newest complete checkpoint, every file
    verified.

    source: "base", "mid", "sft", "rl", or a checkpoint's folder. phase: "train" or "eval".

    Example: model, tokenizer, meta = load_model("sft", device, phase="eval")
    """
    if phase not in ("train", "eval"):
        raise ConfigError(f'phase {phase!r} is unknown; it is "train" or "eval"')
    return load_folder(checkpoint_of(source, model_tag, step), device, phase)


def load_folder(path: Path, device, phase: str) -> tuple[GPT, Tokenizer, dict]:
    """As load_model, of a verified folder."""
    weights, config, tokenizer, run = read_folder(path)
    weights = {name: weights.pop(name).to(device, copy=True) for name in list(weights)}
    model = GPT.from_weights(config, weights)
    model.compute_dtype = choose_dtype(model.device)[0]
    model.stop_ids = stop_ids(tokenizer)
    return model.train(phase == "train"), tokenizer, {**run, "path": str(path)}


def load_checkpoint(path: Path | str) -> tuple[dict, GPTConfig, Tokenizer, dict]:
    """(weights by name on the CPU, config, tokenizer, run.json) of a folder, which is verified."""
    verify(path)
    return read_folder(Path(path))


def read_folder(path: Path) -> tuple[dict, GPTConfig, Tokenizer, dict]:
    """As load_checkpoint, of a verified folder."""
    config = from_hf(read_json(path / CONFIG))
    run = read_json(path / RUN)
    tokenizer = Tokenizer.load(path)
    found = tokenizer.fingerprint
    with safe_open(path / WEIGHTS, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    if config.tie_word_embeddings and EMBEDDING in weights:  # stored once
        weights.setdefault(HEAD, weights[EMBEDDING])
    for where, record in ((WEIGHTS, metadata), (RUN, run)):
        if found != (expected := str(record.get("tokenizer_fingerprint"))):
            raise CheckpointError(
                f"{path}: tokenizer fingerprint is {found[:12]}, the weights were trained with "
                f"{expected[:12]} (in {where}). Restore tokenizer.json from this checkpoint's own "
                f"backup, or point --model-tag at another run."
            )
    check_names_and_shapes(weights, config, path / WEIGHTS)
    return weights, config, tokenizer, run


def check_names_and_shapes(weights: dict, config: GPTConfig, where: Path | str) -> None:
    """CheckpointError unless `weights` are the tensors that a model of `config` has."""
    if config.n_layer > len(weights):  # before a model of a million layers is made
        raise CheckpointError(
            f"{where} has {len(weights)} tensors, {CONFIG} says {config.n_layer} layers"
        )
    with torch.device("meta"):
        wanted = {name: tuple(t.shape) for name, t in GPT(config, seed=None).state_dict().items()}
    shapes = {name: tuple(t.shape) for name, t in weights.items()}
    names = sorted(wanted.keys() | shapes.keys())
    if wrong := [name for name in names if wanted.get(name) != shapes.get(name)]:
        shown = "; ".join(
            f"{name} has shape {shapes.get(name)}, {CONFIG} needs {wanted.get(name)}"
            for name in wrong[:5]
        )
        raise CheckpointError(f"{where}: {len(wrong)} tensor(s) do not fit: {shown}")


def load_training_state(path: Path) -> tuple[dict, dict, dict[str, dict[str, torch.Tensor]]]:
    """(state.json, random generators, optimizers by name) of a verified folder."""
    if not (path / RNG).is_file():
        raise CheckpointError(
            f"{path} has no {RNG}: it was imported, or saved by an earlier version, and cannot be "
            f"resumed. Begin a new run, with --fresh or another --model-tag"
        )
    optimizers = {f.stem: load_file(f) for f in sorted((path / OPTIMIZER).glob("*.safetensors"))}
    return read_json(path / STATE), load_file(path / RNG), optimizers
