"""Read models that were published, and make native checkpoints of them: folders of transformers'
nanochat class, ours or others', and upstream's own files (see upstream.py)."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from nanochat import upstream
from nanochat.checkpoint_index import step_dir
from nanochat.checkpoint_manager import (
    CONFIG,
    RUN,
    TEMPLATE,
    WEIGHTS,
    folder_texts,
    write_folder,
)
from nanochat.common import CheckpointError, ConfigError, print0
from nanochat.conversation import CHAT_TEMPLATE
from nanochat.export_files import CARD, INDEX, PARITY, TOKENIZER
from nanochat.foreign_tokenizer import read_tokenizer_json
from nanochat.gpt import GPT, GPTConfig
from nanochat.huggingface import target_names
from nanochat.parity import DTYPES
from nanochat.tokenizer import Tokenizer

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# What transformers' class takes where config.json says nothing.
DEFAULTS = {
    "hidden_act": "relu2",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "intermediate_size": 8192,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "final_logit_softcapping": 15.0,
}
SHAPE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
OLD_NAMES = {"qkv_bias": "attention_bias", "logits_soft_cap": "final_logit_softcapping"}
REFUSED = ("quantization_config", "auto_map", "sliding_window", "layer_types")


@dataclass
class Published:
    """A model as it was read: float32 weights under our names, and where they are from."""

    weights: dict[str, torch.Tensor]
    config: GPTConfig
    tokenizer: Tokenizer
    step: int
    run: dict  # for run.json
    dtype: str = "float32"  # what the weights were stored in
    files: list[str] = field(default_factory=list)


def read_published(folder: Path, tokenizer: Path | None = None) -> Published:
    """A Hugging Face folder, or upstream's files. Raises a NanochatError that says what cannot be
    read.

    tokenizer: of upstream's files, where the pickled tokenizer lies.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; name one with a published model")
    if upstream.is_upstream(folder):
        weights, config, found, meta = upstream.read_upstream(folder, tokenizer)
        run = {"config": meta.get("user_config", {})}
        run["imported"] = {"from": "karpathy/nanochat .pt", "meta": meta}
        return Published(weights, config, found, int(meta.get("step", 0)), run)
    if tokenizer:
        raise ConfigError(
            f"--tokenizer is for upstream's files, and {folder} has its own {TOKENIZER}. To try "
            f"another: python -m scripts.doctor {folder} --tokenizer {tokenizer}"
        )
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} has neither a {CONFIG} (a Hugging Face folder) nor a model_<step>.pt"
        )
    config, settings = read_config(folder)
    weights, dtype, files = read_weights(folder, config, settings["tie_word_embeddings"])
    found = read_tokenizer_json(folder / TOKENIZER, config.vocab_size)
    template = folder / TEMPLATE
    if not template.is_file() or template.read_text(encoding="utf-8") != CHAT_TEMPLATE:
        print0(f"{folder}: its chat template is another or none; nanochat's takes its place")
    run = recorded(folder, dtype)
    return Published(weights, config, found, int(run.get("step", 0)), run, dtype, files)


def recorded(folder: Path, dtype: str) -> dict:
    """run.json of a checkpoint made of the folder: what that says of its run, and the place."""
    records = {name: read_json(folder / name) for name in (RUN, PARITY)}
    imported = {"from": "a Hugging Face folder", "dtype": dtype}
    if records[PARITY]:  # an export of ours: what it needs to be exported again as it was
        imported |= {"run": records[RUN], "parity": records[PARITY], "card": read_text(folder)}
    return {**(records[RUN] or {}), "imported": imported}


def read_json(path: Path) -> dict | None:
    """The file's contents; None where there is no file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error


def read_text(folder: Path) -> str | None:
    path = folder / CARD
    return path.read_text(encoding="utf-8") if path.is_file() else None


# ---------------------------------------------------------------- config and weights


def read_config(folder: Path) -> tuple[GPTConfig, dict]:
    """(GPTConfig, config.json with the class's defaults where it says nothing), a line for each.

    Raises ConfigError for a setting that this model cannot compute.
    """
    where = folder / CONFIG
    settings = read_json(where)
    if not isinstance(settings, dict):
        found = "is missing" if settings is None else f"holds a {type(settings).__name__}"
        raise CheckpointError(f"{where} {found}; expected the settings of a published model")
    for name in REFUSED:
        if settings.get(name):
            raise ConfigError(f"{where} has {name} = {settings[name]!r}; that cannot be imported")
    classes = settings.get("architectures") or ["NanoChatForCausalLM"]
    if classes != ["NanoChatForCausalLM"]:
        raise ConfigError(
            f"{where}: found the class {', '.join(classes)}, expected transformers' own "
            f"NanoChatForCausalLM"
        )
    if missing := [name for name in SHAPE if not isinstance(settings.get(name), int)]:
        raise ConfigError(
            f"{where} does not say {', '.join(missing)}, which the model's shape needs"
        )
    for old, new in OLD_NAMES.items():
        if old in settings:
            settings.setdefault(new, settings[old])
    for name, value in DEFAULTS.items():
        if name not in settings:
            print0(f"{where} does not say {name}; transformers' class takes {value!r}")
            settings[name] = value
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise ConfigError(f"{where}: rotary embedding of type {kind!r}; this model has the default")
    if (share := rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ConfigError(f"{where}: only {share} of each head is rotated; here it is all of it")
    theta = rope.get("rope_theta", settings.get("rope_theta", 10_000.0))
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": float(theta)}
    heads = settings.get("num_key_value_heads")
    settings["num_key_value_heads"] = settings["num_attention_heads"] if heads is None else heads
    tied = settings["tie_word_embeddings"]
    return GPTConfig.from_hf({**settings, "tie_word_embeddings": False}), {
        **settings,
        "tie_word_embeddings": tied,
    }


def read_weights(folder: Path, config: GPTConfig, tied: bool) -> tuple[dict, str, list[str]]:
    """(float32 tensors by name, the dtype they were stored in, the files), one file or many.

    Raises CheckpointError for a tensor that is missing, left over or of another shape.
    """
    index = read_json(folder / INDEX)
    if index and (folder / WEIGHTS).is_file():
        print0(f"{folder} has {WEIGHTS} and {INDEX}; transformers reads the first, and so is done")
        index = None
    files = sorted(set(index["weight_map"].values())) if index else [WEIGHTS]
    weights, dtypes = {}, set()
    for name in files:
        path = folder / name
        if path.parent != folder or not path.is_file():
            pickled = [p.name for p in folder.glob("*.bin")]
            more = f"; {', '.join(pickled)} is a pickle, which is not opened" if pickled else ""
            raise CheckpointError(f"{path} is missing{more}")
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    tensor = file.get_tensor(key)
                    dtypes.add(kind := str(tensor.dtype).removeprefix("torch."))
                    if kind not in DTYPES:
                        known = ", ".join(DTYPES)
                        raise CheckpointError(f"{path}: {key} is {kind}; read are {known}")
                    if key in weights:
                        raise CheckpointError(f"{path}: {key} was in another file already")
                    weights[key] = tensor.float()
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
    if tied:
        if HEAD in weights and not torch.equal(weights[HEAD], weights[EMBEDDING]):
            raise CheckpointError(
                f"{folder}: {HEAD} and {EMBEDDING} are said to be tied but differ"
            )
        print0(f"{folder}: {HEAD} is tied to {EMBEDDING}; the checkpoint gets two equal tensors")
        weights[HEAD] = weights[EMBEDDING].clone()
    check_shapes(weights, config, folder)
    if len(dtypes) > 1:
        print0(f"{folder}: weights are stored in {', '.join(sorted(dtypes))}")
    return weights, dtypes.pop() if len(dtypes) == 1 else "float32", files


def check_shapes(weights: dict, config: GPTConfig, where: Path) -> None:
    """CheckpointError unless these are the tensors that the model has."""
    if strange := sorted(weights.keys() - target_names(config)):
        raise CheckpointError(f"{where} has {upstream.later(strange)}: not this architecture")
    with torch.device("meta"):
        wanted = {name: tuple(t.shape) for name, t in GPT(config).state_dict().items()}
    for name, shape in wanted.items():
        found = tuple(weights[name].shape) if name in weights else None
        if found != shape:
            raise CheckpointError(f"{where}: {name} has shape {found}, {CONFIG} needs {shape}")


# ---------------------------------------------------------------- a native checkpoint of it


def import_published(
    folder: Path, tag: str, stage: str = "sft", tokenizer: Path | None = None
) -> Path:
    """Makes a native checkpoint of a published model and returns its folder.

    Its weights are float32 masters of the precision that was published; there is no optimizer to
    resume. CheckpointError where a checkpoint of that place exists.

    Example: import_published(Path("hf_model"), "rescued", "sft")
    """
    published = read_published(Path(folder), tokenizer)
    final = step_dir(stage, tag, published.step)
    if final.exists():
        raise CheckpointError(f"{final} exists; name another --tag, it is not replaced")
    write_native(final, published, {"stage": stage, "tag": tag, "step": published.step})
    return final


def write_native(final: Path, published: Published, place: dict) -> None:
    """Writes the checkpoint folder `final`, atomically."""
    config, tokenizer = published.config, published.tokenizer
    run = {**published.run, **place}
    texts = folder_texts(config, tokenizer, run, {}, place, torch.device("cpu"))
    tensors = {WEIGHTS: published.weights}
    write_folder(final, texts, tensors, tokenizer, config.sequence_len, place)
