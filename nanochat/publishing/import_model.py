"""Native checkpoints of published models: Hugging Face folders of transformers' nanochat class,
ours or others', and checkpoints of karpathy/nanochat (see karpathy_checkpoint.py)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from nanochat.checkpoint.hf_config import from_hf, to_hf
from nanochat.checkpoint.index import step_dir
from nanochat.checkpoint.writing import write_folder
from nanochat.checkpoint_manager import (
    CONFIG,
    GENERATION,
    RUN,
    TEMPLATE,
    WEIGHTS,
    check_names_and_shapes,
    folder_texts,
)
from nanochat.common import DTYPES, CheckpointError, ConfigError, print0
from nanochat.conversation import chat_template
from nanochat.gpt import EMBEDDING, HEAD, GPTConfig
from nanochat.publishing.export_files import CARD, PARITY, TOKENIZER, changed_files, read_record
from nanochat.publishing.import_tokenizer import read_tokenizer_json, read_with_marks
from nanochat.publishing.karpathy_checkpoint import is_karpathy_checkpoint, read_karpathy_checkpoint
from nanochat.tokenizer import Tokenizer

INDEX = "model.safetensors.index.json"  # of weights in several files
# What transformers' class uses if config.json does not say.
DEFAULTS = {
    "hidden_act": "relu2",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "intermediate_size": 8192,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "final_logit_softcapping": 15.0,
}
OLD_NAMES = {"qkv_bias": "attention_bias", "logits_soft_cap": "final_logit_softcapping"}
REFUSED = ("quantization_config", "auto_map", "sliding_window", "layer_types")
IDS = {"bos_token_id", "eos_token_id", "pad_token_id"}
# Fields of every transformers config that change nothing that is computed here.
IGNORED = {
    *("transformers_version", "_from_model_config", "_name_or_path", "torch_dtype", "id2label"),
    *("output_hidden_states", "output_attentions", "return_dict", "label2id", "problem_type"),
    *("is_encoder_decoder", "chunk_size_feed_forward", "rope_scaling", "partial_rotary_factor"),
}


@dataclass
class ImportedModel:
    """A published model: float32 weights under our names, and where they came from."""

    weights: dict[str, torch.Tensor]
    config: GPTConfig
    tokenizer: Tokenizer
    run: dict  # for run.json
    dtype: str = "float32"  # what the weights were stored in


def read_published(
    folder: Path, tokenizer: Path | None = None, add_marks: bool = False
) -> ImportedModel:
    """A Hugging Face folder, or a karpathy/nanochat checkpoint with its pickled tokenizer.

    add_marks: a tokenizer without our special tokens gets them (see import_tokenizer.with_marks).
    """
    if is_karpathy_checkpoint(folder):
        weights, config, found, meta = read_karpathy_checkpoint(folder, tokenizer)
        check_finite(weights, folder)
        run = {"config": meta.get("user_config") or {}, "step": step_of(meta, folder)}
        run["imported"] = {"from": "karpathy/nanochat .pt", "meta": meta}
        return ImportedModel(weights, config, found, run)
    if tokenizer:
        raise ConfigError(
            f"--tokenizer is for checkpoints of karpathy/nanochat. To try another than the "
            f"folder's: python -m scripts.doctor {folder} --tokenizer {tokenizer}"
        )
    for problem in changed_files(folder):
        print0(f"{folder}: {problem}")
    old_size = vocab_size_of(folder) if add_marks else None
    if old_size:
        found = read_with_marks(folder, old_size)
        config = read_config(folder, found.vocab_size)
    else:
        config = read_config(folder)
        found = read_tokenizer_json(folder / TOKENIZER, config.vocab_size)
    weights, dtype = read_weights(folder, config, old_size)
    template = folder / TEMPLATE
    if not template.is_file() or template.read_bytes() != chat_template().encode():
        print0(f"{folder}: nanochat's chat template takes the place of its own")
    warn_unknown_keys(folder / GENERATION, read_record(folder / GENERATION) or {}, IDS)
    return ImportedModel(weights, config, found, read_run(folder, dtype), dtype)


def check_finite(weights: dict, folder: Path) -> None:
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            reason = "the file was damaged, or the training diverged"
            raise CheckpointError(f"{folder}: {name} has numbers that are not finite: {reason}")


def warn_unknown_keys(where: Path, record: dict, known: set) -> None:
    """Prints a line that names the settings of a file that are not used."""
    names = [name for name in record if name not in known | IGNORED and record[name] is not None]
    if names:
        unknown = ", ".join(f"{name} = {record[name]!r:.40}" for name in names)
        print0(f"{where}: not taken over: {unknown}")


def step_of(record: dict, where: Path) -> int:
    """The step in a run's record, 0 if there is none."""
    step = record.get("step", 0)
    if type(step) is not int or step < 0:
        raise CheckpointError(f"{where}: step is {step!r:.60}, expected a whole number from 0 on")
    return step


def read_run(folder: Path, dtype: str) -> dict:
    """run.json of a checkpoint made from the folder: the folder's own, and where it is from."""
    run, path = read_record(folder / RUN) or {}, folder / CARD
    imported = {"from": "a Hugging Face folder", "dtype": dtype}
    if read_record(folder / PARITY):  # our export: what it takes to export it again as it was
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
        imported |= {"run": run, "card": text}
    return {**run, "step": step_of(run, folder / RUN), "imported": imported}


# ---------------------------------------------------------------- config and weights


def read_settings(folder: Path) -> dict:
    """config.json, of the class that we compute."""
    where = folder / CONFIG
    settings = read_record(where)
    if settings is None:
        expected = "a Hugging Face folder, or one with a model_<step>.pt"
        raise CheckpointError(f"{where} is missing; expected {expected}")
    classes = settings.get("architectures") or ["NanoChatForCausalLM"]
    if classes != ["NanoChatForCausalLM"]:
        raise ConfigError(f"{where}: the class is {classes!s:.80}, expected NanoChatForCausalLM")
    return settings


def vocab_size_of(folder: Path) -> int:
    size = read_settings(folder).get("vocab_size")
    if type(size) is not int or not 0 < size < 2**32:
        what = "a whole number from 1 to 2^32 - 1: token ids are stored in 32 bits"
        raise CheckpointError(f"{folder / CONFIG} has vocab_size = {size!r:.60}, expected {what}")
    return size


def read_config(folder: Path, vocab_size: int | None = None) -> GPTConfig:
    """The config; a printed line for each default and each
    unknown setting, ConfigError for one that this model cannot compute.

    vocab_size: in place of its own, for a vocabulary that has grown."""
    where, settings = folder / CONFIG, read_settings(folder)
    if vocab_size:
        settings["vocab_size"] = vocab_size
    for name in REFUSED:
        if settings.get(name):
            raise ConfigError(f"{where} has {name} = {settings[name]!r}; that cannot be imported")
    for old, new in OLD_NAMES.items():
        if old in settings and settings.setdefault(new, settings[old]) == settings[old]:
            del settings[old]
    for name in DEFAULTS.keys() - settings.keys():
        print0(f"{where} does not say {name}; transformers' class uses {DEFAULTS[name]!r}")
    settings = {**DEFAULTS, **settings}
    settings["rope_theta"] = rope_theta(settings, where)
    heads, width = settings.get("num_attention_heads"), settings.get("hidden_size")
    if settings.get("num_key_value_heads") is None:
        settings["num_key_value_heads"] = heads
    if settings.get("head_dim") is None and type(heads) is type(width) is int and heads > 0:
        settings["head_dim"] = width // heads
    config = from_hf(settings)
    warn_unknown_keys(where, settings, IDS | to_hf(config).keys())
    return config


def rope_theta(settings: dict, where: Path) -> float:
    """The base of the rotary embedding; ConfigError if that is of another kind than the default."""
    ropes = [settings.get(name) or {} for name in ("rope_parameters", "rope_scaling")]
    for rope in (settings, *ropes):
        if not isinstance(rope, dict):
            raise CheckpointError(f"{where}: rope_parameters is {rope!r:.60}, not a dictionary")
        kind = rope.get("rope_type", rope.get("type", "default"))
        share = rope.get("partial_rotary_factor") or 1.0
        if kind != "default" or share != 1.0:
            found = f"rotary embedding of type {kind!r} on {share} of each head"
            raise ConfigError(f"{where}: {found}; this model has the default one on all of it")
    # subtle: of the two, transformers 5 takes rope_scaling, if it is not empty.
    return (ropes[1] or ropes[0]).get("rope_theta", settings.get("rope_theta", 10_000.0))


def read_weights(folder: Path, config: GPTConfig, old_size: int | None = None) -> tuple[dict, str]:
    """(float32 tensors by name, the dtype that they were stored in) of one file or several.

    old_size: of a vocabulary that has grown; the rows of the new ids are the mean of the others.
    """
    weights, dtypes = {}, set()
    for name in weight_files(folder):
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing (and pickled weights, .bin, are not read)")
        try:
            stored = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        for key, tensor in stored.items():
            kind = str(tensor.dtype).removeprefix("torch.")
            if kind not in DTYPES:
                raise CheckpointError(f"{path}: {key} is {kind}; expected one of {[*DTYPES]}")
            dtypes.add(kind)
            weights[key] = tensor.float()
    if config.tie_word_embeddings and EMBEDDING in weights:
        head = weights.setdefault(HEAD, weights[EMBEDDING])
        if not torch.equal(head, weights[EMBEDDING]):
            raise CheckpointError(f"{folder}: {HEAD} and {EMBEDDING} should be tied but differ")
    for name in (EMBEDDING, HEAD):
        if name in weights and len(weights[name]) == old_size:
            mean = weights[name].mean(0, keepdim=True).expand(config.vocab_size - old_size, -1)
            weights[name] = torch.cat([weights[name], mean])
    check_names_and_shapes(weights, config, folder)
    check_finite(weights, folder)
    if len(dtypes) > 1:
        print0(f"{folder}: weights are stored in {', '.join(sorted(dtypes))}")
    return weights, dtypes.pop() if len(dtypes) == 1 else "float32"


def weight_files(folder: Path) -> list[str]:
    """The names of the files of weights: one, or those that the index lists."""
    index = read_record(folder / INDEX)
    if index is None or (folder / WEIGHTS).is_file():
        if index:
            print0(f"{folder} has {WEIGHTS} and {INDEX}; the first is read, as by transformers")
        return [WEIGHTS]
    file_of = index.get("weight_map")
    names = list(file_of.values()) if isinstance(file_of, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"{folder / INDEX}: weight_map is {file_of!r:.60}, expected the file of each tensor"
        )
    return sorted(set(names))


# ---------------------------------------------------------------- a native checkpoint of it


def make_checkpoint(model: ImportedModel, tag: str, stage: str) -> Path:
    """Writes a native checkpoint of a published model, without an optimizer to resume, and returns
    its folder; never replaces one.

    Example: make_checkpoint(read_published(Path("hf_model")), "rescued", "sft")
    """
    final = step_dir(stage, tag, model.run["step"])
    if final.exists():
        raise CheckpointError(f"{final} exists and is not replaced; name another --tag")
    write_native(final, model, stage, tag)
    return final


def write_native(final: Path, model: ImportedModel, stage: str, tag: str) -> None:
    """Writes the checkpoint folder `final`, atomically."""
    config, tokenizer = model.config, model.tokenizer
    place = {"stage": stage, "tag": tag, "step": model.run["step"]}
    texts = folder_texts(config, tokenizer, model.run, {}, place, torch.device("cpu"))
    tensors = {WEIGHTS: model.weights}
    write_folder(final, texts, tensors, tokenizer.fingerprint, place, replace=False)
