"""Checkpoints of karpathy/nanochat: model_*.pt, meta_*.json and a pickled tokenizer, read without
running any code of theirs.

Its first architecture computes what ours computes, under other names (both rotate the halves of a
head as y1 = x1 cos + x2 sin, y2 = x2 cos - x1 sin). Later ones are refused by name.
"""

import io
import json
import pickle
import pickletools
from pathlib import Path

import torch

from nanochat.common import CheckpointError, DataError, print0
from nanochat.gpt import GPTConfig
from nanochat.publishing.import_tokenizer import from_ranks

NAMES = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
SHAPE = {"sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"}
LATER = {  # what later architectures added: a part of a name, and what it is
    "value_embed": "value embeddings",
    "ve_gate": "gates of value embeddings",
    "resid_lambdas": "learned residual scales",
    "x0_lambdas": "learned shares of the embedding in every layer",
    "smear": "a smear of neighbouring tokens",
    "backout": "a backout of middle layers",
    "bias": "biases",
    "norm": "norms with parameters",
    "gate": "gates",
    "router": "a mixture of experts",
    "expert": "a mixture of experts",
}


# ---------------------------------------------------------------- weights


def is_upstream(folder: Path) -> bool:
    """Whether the folder holds a model_<step>.pt."""
    return any(folder.glob("model_*.pt"))


def read_upstream(folder: Path, tokenizer: Path | None = None):
    """(weights, GPTConfig, Tokenizer, meta) of the newest step in an upstream folder.

    weights are float32, under our names. tokenizer: the tokenizer.pkl, where it does not lie in the
    folder. Raises CheckpointError for another architecture, naming what was found.
    """
    steps = sorted(folder.glob("model_*.pt"), key=lambda path: (len(path.name), path.name))
    path = steps[-1]
    if len(steps) > 1:
        print0(f"{folder} holds {len(steps)} steps; {path.name} is read")
    meta_path = folder / path.name.replace("model_", "meta_").replace(".pt", ".json")
    if not meta_path.is_file():
        raise CheckpointError(f"{meta_path} is missing; it says the model's shape")
    meta = read_json(meta_path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is no file of tensors alone: {error}") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in loaded.items()
    ):
        raise CheckpointError(f"{path} is not a dictionary of tensors alone, as upstream saves it")
    tensors = {name.removeprefix("_orig_mod."): tensor for name, tensor in loaded.items()}
    config = read_config(meta, tensors, meta_path)
    weights = rename(tensors, config, path)
    found = tokenizer or first_there(folder)
    state = read_pickled_encoding(found)
    ranks, specials = state["mergeable_ranks"], state["special_tokens"]
    return weights, config, from_ranks(ranks, specials, state["pat_str"], config.vocab_size), meta


def read_json(path: Path) -> dict | None:
    """The file's dictionary; None where there is no file. CheckpointError for anything else."""
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {str(error):.200}") from error
    except OSError as error:
        raise CheckpointError(f"{path} could not be read: {error.strerror}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} holds a {type(record).__name__}, expected a dictionary")
    return record


def first_there(folder: Path) -> Path:
    """The tokenizer.pkl in or beside an upstream folder."""
    places = [folder / "tokenizer.pkl", folder / "tokenizer" / "tokenizer.pkl"]
    places += [parent / "tokenizer" / "tokenizer.pkl" for parent in folder.absolute().parents[:2]]
    for place in places:
        if place.is_file():
            return place
    raise CheckpointError(f"{folder} has no tokenizer.pkl; name it with --tokenizer")


def read_config(meta: dict, tensors: dict, where: Path) -> GPTConfig:
    """The shape, and what upstream's first architecture fixes: theta 10,000, soft-cap 15."""
    shape = meta.get("model_config", meta)
    if not isinstance(shape, dict):
        raise CheckpointError(f"{where}: model_config is {shape!r:.60}, expected a dictionary")
    shape = dict(shape)
    window = str(shape.pop("window_pattern", "L"))
    if set(window) != {"L"}:
        raise CheckpointError(f"{where}: window_pattern {window!r}: attention over short windows")
    if missing := SHAPE - shape.keys():
        raise CheckpointError(f"{where} does not say {', '.join(sorted(missing))}")
    if strange := sorted(shape.keys() - SHAPE):
        raise CheckpointError(
            f"{where}: model_config has {', '.join(strange)}: a later architecture than the one "
            f"that can be imported, whose settings are {', '.join(sorted(SHAPE))}"
        )
    for name, value in shape.items():
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{where}: {name} is {value!r:.60}, expected a number above 0")
    if shape["n_layer"] > len(tensors):
        raise CheckpointError(f"{where}: n_layer is {shape['n_layer']}, of {len(tensors)} tensors")
    rows = -(-shape["vocab_size"] // 64) * 64
    if rows != shape["vocab_size"]:
        print0(
            f"{where}: vocabulary {shape['vocab_size']} is padded to {rows}; upstream never lets "
            f"the {rows - shape['vocab_size']} ids of padding be chosen, here nothing forbids them"
        )
        shape["vocab_size"] = rows
    return GPTConfig(**shape, head_dim=shape["n_embd"] // shape["n_head"], logit_softcap=15.0)


def rename(tensors: dict, config: GPTConfig, where: Path) -> dict[str, torch.Tensor]:
    """The tensors in float32 under our names; CheckpointError for one that has no place, or a place
    that has none."""
    K, D = config.head_dim, config.n_embd
    shapes = dict.fromkeys(NAMES, (D, D))
    shapes |= {"attn.c_q": (config.n_head * K, D), "attn.c_k": (config.n_kv_head * K, D)}
    shapes |= {"attn.c_v": (config.n_kv_head * K, D)}
    shapes |= {"mlp.c_fc": (4 * D, D), "mlp.c_proj": (D, 4 * D)}
    places = {"transformer.wte.weight": ("model.embed_tokens.weight", (config.vocab_size, D))}
    for i in range(config.n_layer):
        for theirs, ours in NAMES.items():
            new = f"model.layers.{i}.{ours}.weight"
            places[f"transformer.h.{i}.{theirs}.weight"] = new, shapes[theirs]
    places["lm_head.weight"] = "lm_head.weight", (config.vocab_size, D)
    if strange := sorted(tensors.keys() - places.keys()):
        raise CheckpointError(f"{where}: {later(strange)}: not the architecture that is read here")
    weights = {}
    for name, (new, shape) in places.items():
        if name not in tensors:
            raise CheckpointError(f"{where} has no {name}")
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"{where}: {name} has shape {tuple(tensors[name].shape)}, expected {shape}"
            )
        weights[new] = tensors[name].float().clone()
    return weights


def later(names: list[str]) -> str:
    """What unknown tensors are: "value embeddings (value_embeds.1.weight), ..."."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        known = (what for part, what in LATER.items() if part in name)
        kinds.setdefault(next(known, "tensors that are not known"), []).append(name)
    return ", ".join(f"{kind} ({some[0]})" for kind, some in kinds.items())


# ---------------------------------------------------------------- the pickled tokenizer


ENCODING = ("tiktoken.core", "Encoding")


class EncodingState:
    """Stands in for tiktoken's class: keeps what it would be built from, and builds nothing."""

    def __setstate__(self, state):
        self.state = state


class DataUnpickler(pickle.Unpickler):
    """Finds one class, the stand-in, and refuses every other name."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) != ENCODING:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return EncodingState


def read_pickled_encoding(path: Path) -> dict:
    """{"name", "pat_str", "mergeable_ranks", "special_tokens"} of a pickled tiktoken.Encoding.

    No code of the pickle runs: all that it can name is find_class's stand-in, which does nothing.
    Raises DataError.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} could not be read: {error.strerror}") from error
    try:
        # subtle: the memo is an array, and a forged index would make it as long as memory.
        for opcode, argument, _ in pickletools.genops(data):
            if "PUT" in opcode.name and int(argument) > len(data):
                raise pickle.UnpicklingError(f"memo index {argument} in {len(data)} bytes")
        made = DataUnpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, IndexError,
            KeyError, EOFError, RecursionError, MemoryError) as error:  # fmt: skip
        raise DataError(
            f"{path} cannot be read: it is not a plain pickle of a tiktoken.Encoding ({error}). "
            f"Nothing in it was run"
        ) from error
    state = getattr(made, "state", None)
    if isinstance(state, str):
        raise DataError(f"{path} only names tiktoken's own encoding {state!r}; it holds no tokens")
    if problem := problem_of(state):
        raise DataError(f"{path} is no tokenizer: {problem}")
    return state


def problem_of(state) -> str | None:
    """What is wrong with an encoding's state; None if nothing is."""
    wanted = {"name": str, "pat_str": str, "mergeable_ranks": dict, "special_tokens": dict}
    if not isinstance(state, dict):
        return f"found {type(state).__name__}, expected a dictionary"
    for key, kind in wanted.items():
        if not isinstance(state.get(key), kind):
            return f"{key} is {type(state.get(key)).__name__}, expected {kind.__name__}"
    for key, kind in (("mergeable_ranks", bytes), ("special_tokens", str)):
        for token, number in state[key].items():
            if type(token) is not kind or type(number) is not int:
                return f"{key} holds {token!r:.40}: {number!r:.40}, expected {kind.__name__}: int"
    return None
