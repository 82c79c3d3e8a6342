"""Read models that were published, and make native checkpoints of them: folders of transformers'
nanochat class, ours or others', and upstream's own files (see karpathy_checkpoint.py)."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

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
from nanochat.common import CheckpointError, ConfigError, print0
from nanochat.conversation import CHAT_TEMPLATE
from nanochat.gpt import GPTConfig
from nanochat.publishing import karpathy_checkpoint
from nanochat.publishing.export_files import CARD, INDEX, PARITY, TOKENIZER, changed_since_proof
from nanochat.publishing.import_tokenizer import read_tokenizer_json
from nanochat.publishing.karpathy_checkpoint import read_json
from nanochat.publishing.parity import DTYPES
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
IDS = {"bos_token_id", "eos_token_id", "pad_token_id"}
WRITTEN_BY = {"transformers_version", "_from_model_config", "_name_or_path"}
# Fields of every config of transformers that change nothing that is computed here.
GENERAL = {
    *("torch_dtype", "output_hidden_states", "output_attentions", "return_dict", "id2label"),
    *("label2id", "problem_type", "is_encoder_decoder", "chunk_size_feed_forward"),
}


@dataclass
class ImportedModel:
    """A model as it was read: float32 weights under our names, and where they are from."""

    weights: dict[str, torch.Tensor]
    config: GPTConfig
    tokenizer: Tokenizer
    step: int
    run: dict  # for run.json
    dtype: str = "float32"  # what the weights were stored in
    files: list[str] = field(default_factory=list)


def read_published(folder: Path, tokenizer: Path | None = None) -> ImportedModel:
    """A Hugging Face folder, or upstream's files. Raises a NanochatError that says what cannot be
    read.

    tokenizer: of upstream's files, where the pickled tokenizer lies.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; name one with a published model")
    if karpathy_checkpoint.is_upstream(folder):
        weights, config, found, meta = karpathy_checkpoint.read_upstream(folder, tokenizer)
        run = {"config": meta.get("user_config") or {}}
        run["imported"] = {"from": "karpathy/nanochat .pt", "meta": meta}
        check_finite(weights, folder)
        return ImportedModel(weights, config, found, step_of(meta, folder), run)
    if tokenizer:
        raise ConfigError(
            f"--tokenizer is for upstream's files, and {folder} has its own {TOKENIZER}. To try "
            f"another: python -m scripts.doctor {folder} --tokenizer {tokenizer}"
        )
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} has neither a {CONFIG} (a Hugging Face folder) nor a model_<step>.pt"
        )
    for sentence in changed_since_proof(folder):
        print0(f"{folder}: {sentence}")
    config, settings = read_config(folder)
    weights, dtype, files = read_weights(folder, config, settings["tie_word_embeddings"])
    check_finite(weights, folder)
    found = read_tokenizer_json(folder / TOKENIZER, config.vocab_size)
    template = folder / TEMPLATE
    if not template.is_file() or template.read_bytes() != CHAT_TEMPLATE.encode():
        print0(f"{folder}: its chat template is another or none; nanochat's takes its place")
    generation = read_json(folder / GENERATION) or {}
    warn_unknown_keys(folder / GENERATION, generation, IDS)
    run = recorded(folder, dtype)
    return ImportedModel(weights, config, found, run["step"], run, dtype, files)


def check_finite(weights: dict, folder: Path) -> None:
    """CheckpointError naming a tensor with a NaN or an infinity: no model that can be used."""
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{folder}: {name} has numbers that are not finite: the model was damaged, or "
                f"diverged. Take an earlier release of it"
            )


def warn_unknown_keys(where: Path, record: dict, known: set) -> None:
    """Prints a line that names the settings of a file which are not taken over."""
    unknown = [
        f"{name} = {value!r:.40}"
        for name, value in record.items()
        if name not in known | WRITTEN_BY and value is not None
    ]
    if unknown:
        print0(f"{where}: not taken over: {', '.join(unknown)}")


def step_of(record: dict, where: Path) -> int:
    """The step that a run's record names, 0 where it names none; CheckpointError for a strange."""
    step = record.get("step", 0)
    if type(step) is not int or step < 0:
        raise CheckpointError(f"{where}: step is {step!r:.60}, expected a whole number from 0 on")
    return step


def recorded(folder: Path, dtype: str) -> dict:
    """run.json of a checkpoint made of the folder: what that says of its run, and the place.

    CheckpointError for records that are damaged.
    """
    records = {name: read_json(folder / name) for name in (RUN, PARITY)}
    imported = {"from": "a Hugging Face folder", "dtype": dtype}
    if records[PARITY]:  # an export of ours: what it needs to be exported again as it was
        imported |= {"run": records[RUN], "parity": records[PARITY], "card": read_text(folder)}
    run = records[RUN] or {}
    return {**run, "step": step_of(run, folder / RUN), "imported": imported}


def read_text(folder: Path) -> str | None:
    """The model card; None where there is none."""
    path = folder / CARD
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except ValueError as error:
        raise CheckpointError(
            f"{path} is no UTF-8: {str(error):.200}. Mend or remove it"
        ) from error


# ---------------------------------------------------------------- config and weights


def read_config(folder: Path) -> tuple[GPTConfig, dict]:
    """(GPTConfig, config.json with the class's defaults where it says nothing), a line for each.

    Raises ConfigError for a setting that this model cannot compute, CheckpointError for a damaged
    one.
    """
    where = folder / CONFIG
    settings = read_json(where)
    if settings is None:
        raise CheckpointError(f"{where} is missing; expected the settings of a published model")
    for name in REFUSED:
        if settings.get(name):
            raise ConfigError(f"{where} has {name} = {settings[name]!r}; that cannot be imported")
    classes = settings.get("architectures") or ["NanoChatForCausalLM"]
    if classes != ["NanoChatForCausalLM"]:
        found = ", ".join(map(str, classes)) if isinstance(classes, list) else classes
        raise ConfigError(
            f"{where}: found the class {found!s:.80}, expected a list of transformers' own "
            f"NanoChatForCausalLM"
        )
    if missing := [name for name in SHAPE if not isinstance(settings.get(name), int)]:
        raise ConfigError(
            f"{where} does not say {', '.join(missing)}, which the model's shape needs"
        )
    for old, new in OLD_NAMES.items():
        if old in settings and settings.setdefault(new, settings[old]) != settings[old]:
            raise ConfigError(f"{where}: {old} and {new} contradict each other")
    for name, value in DEFAULTS.items():
        if name not in settings:
            print0(f"{where} does not say {name}; transformers' class takes {value!r}")
            settings[name] = value
    settings["rope_theta"] = rope_theta(settings, where)
    heads = settings["num_attention_heads"]
    for name, value in {
        "num_key_value_heads": heads,
        "head_dim": settings["hidden_size"] // max(1, heads),
    }.items():
        if settings.get(name) is None:
            settings[name] = value
    config = from_hf({**settings, "tie_word_embeddings": False})
    known = to_hf(config).keys() | OLD_NAMES.keys() | {"rope_scaling", "partial_rotary_factor"}
    warn_unknown_keys(where, settings, known | IDS | GENERAL)
    return config, settings


def rope_theta(settings: dict, where):
    """The base of the rotary embedding; ConfigError for one of another kind than the default."""
    theta = settings.get("rope_theta", 10_000.0)
    ropes = [{"partial_rotary_factor": settings.get("partial_rotary_factor", 1.0)}]
    # subtle: where both speak, transformers 5 takes the second, whose default theta is outside.
    for name in ("rope_parameters", "rope_scaling"):
        rope = settings.get(name) or {}
        if not isinstance(rope, dict):
            raise CheckpointError(f"{where}: {name} is {rope!r:.60}, expected a dictionary")
        if rope:
            theta = rope.get("rope_theta", settings.get("rope_theta", 10_000.0))
        ropes.append(rope)
    for rope in ropes:
        if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
            raise ConfigError(
                f"{where}: rotary embedding of type {kind!r}; this model has the default"
            )
        if (share := rope.get("partial_rotary_factor", 1.0)) not in (1.0, None):
            raise ConfigError(
                f"{where}: only {share} of each head is rotated; here it is all of it"
            )
    return theta


def read_weights(folder: Path, config: GPTConfig, tied: bool) -> tuple[dict, str, list[str]]:
    """(float32 tensors by name, the dtype they were stored in, the files), one file or many.

    Raises CheckpointError for a tensor that is missing, left over or of another shape.
    """
    files = weight_files(folder)
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
    if tied and EMBEDDING in weights:  # without: named below
        if HEAD in weights and not torch.equal(weights[HEAD], weights[EMBEDDING]):
            raise CheckpointError(
                f"{folder}: {HEAD} and {EMBEDDING} are said to be tied but differ"
            )
        print0(f"{folder}: {HEAD} is tied to {EMBEDDING}; the checkpoint gets two equal tensors")
        weights[HEAD] = weights[EMBEDDING].clone()
    if strange := [n for n in weights if any(part in n for part in karpathy_checkpoint.LATER)]:
        raise CheckpointError(
            f"{folder} has {karpathy_checkpoint.later(strange)}: not this architecture"
        )
    check_names_and_shapes(weights, config, folder)
    if len(dtypes) > 1:
        print0(f"{folder}: weights are stored in {', '.join(sorted(dtypes))}")
    return weights, dtypes.pop() if len(dtypes) == 1 else "float32", files


def weight_files(folder: Path) -> list[str]:
    """The names of the files of weights; CheckpointError for an index that names none."""
    if (folder / WEIGHTS).is_file():
        if (folder / INDEX).is_file():
            print0(f"{folder} has {WEIGHTS} and {INDEX}; transformers reads the first; so is done")
        return [WEIGHTS]
    index = read_json(folder / INDEX)
    if index is None:
        return [WEIGHTS]
    places = index.get("weight_map")
    names = list(places.values()) if isinstance(places, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"{folder / INDEX}: weight_map is {places!r:.60}, expected the file of each tensor"
        )
    return sorted(set(names))


# ---------------------------------------------------------------- a native checkpoint of it


def import_published(
    folder: Path, tag: str, stage: str = "sft", tokenizer: Path | None = None
) -> Path:
    """Makes a native checkpoint of a published model and returns its folder.

    Its weights are float32 masters of the precision that was published; there is no optimizer to
    resume. CheckpointError where a checkpoint of that place exists.

    Example: import_published(Path("hf_model"), "rescued", "sft")
    """
    return make_checkpoint(read_published(Path(folder), tokenizer), tag, stage)


def make_checkpoint(published: ImportedModel, tag: str, stage: str) -> Path:
    """Writes the native checkpoint of a model that was read, and returns its folder."""
    final = step_dir(stage, tag, published.step)
    if final.exists():
        raise CheckpointError(f"{final} exists; name another --tag, it is not replaced")
    write_native(final, published, {"stage": stage, "tag": tag, "step": published.step})
    return final


def write_native(final: Path, published: ImportedModel, place: dict) -> None:
    """Writes the checkpoint folder `final`, atomically."""
    config, tokenizer = published.config, published.tokenizer
    run = {**published.run, **place}
    texts = folder_texts(config, tokenizer, run, {}, place, torch.device("cpu"))
    tensors = {WEIGHTS: published.weights}
    write_folder(final, texts, tensors, tokenizer, config.sequence_len, place, replace=False)
