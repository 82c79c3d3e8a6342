"""Checkpoints of karpathy/nanochat: model_*.pt, meta_*.json and a pickled tokenizer, read without
running any code in them.

Its first architecture computes what ours computes, under other names (both rotate the halves of a
head as y1 = x1 cos + x2 sin, y2 = x2 cos - x1 sin). Later ones are refused.
"""

import io
import pickle
import pickletools
from pathlib import Path

import torch

from nanochat.checkpoint_manager import check_names_and_shapes
from nanochat.common import CheckpointError, DataError, print0
from nanochat.gpt import GPTConfig
from nanochat.publishing.export_files import read_record
from nanochat.publishing.import_tokenizer import from_ranks
from nanochat.tokenizer import Tokenizer

NAMES = {
    "transformer.wte": "model.embed_tokens",
    "transformer.h": "model.layers",
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
SHAPE = {"sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"}


# ---------------------------------------------------------------- weights


def is_karpathy_checkpoint(folder: Path) -> bool:
    return any(folder.glob("model_*.pt"))


def read_karpathy_checkpoint(
    folder: Path, tokenizer: Path | None = None
) -> tuple[dict[str, torch.Tensor], GPTConfig, Tokenizer, dict]:
    """(weights in float32 under our names, config, tokenizer, meta) of the newest step in a folder;
    CheckpointError for another architecture.

    tokenizer: the tokenizer.pkl, if it is not in or beside the folder.
    """
    *others, path = sorted(folder.glob("model_*.pt"), key=lambda p: (len(p.name), p.name))
    if others:
        print0(f"{folder} holds {len(others) + 1} steps; {path.name} is read")
    meta_path = folder / path.name.replace("model_", "meta_").replace(".pt", ".json")
    meta = read_record(meta_path)
    if meta is None:
        raise CheckpointError(f"{meta_path} is missing; it has the model's shape")
    config = read_config(meta, meta_path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not a file of tensors alone: {error}") from error
    weights = {}
    for name, tensor in loaded.items() if isinstance(loaded, dict) else [(None, None)]:
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{path} is not a dictionary of tensors by name")
        name = name.removeprefix("_orig_mod.")
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        weights[name] = tensor.float().clone()
    check_names_and_shapes(weights, config, f"{path} (later architectures cannot be imported)")
    ranks, specials, pattern = read_pickled_tokenizer(tokenizer or find_tokenizer(folder))
    return weights, config, from_ranks(ranks, specials, pattern, config.vocab_size), meta


def find_tokenizer(folder: Path) -> Path:
    """The tokenizer.pkl in or beside the folder."""
    folders = [folder, folder / "tokenizer"]
    folders += [parent / "tokenizer" for parent in folder.absolute().parents[:2]]
    for place in folders:
        if (place / "tokenizer.pkl").is_file():
            return place / "tokenizer.pkl"
    raise CheckpointError(f"{folder} has no tokenizer.pkl; name it with --tokenizer")


def read_config(meta: dict, where: Path) -> GPTConfig:
    """The shape, and what the first architecture fixes: theta 10,000, soft-cap 15."""
    shape = meta.get("model_config")
    if not isinstance(shape, dict):
        raise CheckpointError(f"{where}: model_config is {shape!r:.60}, expected a dictionary")
    window = str(shape.get("window_pattern", "L"))
    if set(window) != {"L"}:
        raise CheckpointError(f"{where}: window_pattern {window!r}: attention over short windows")
    if strange := sorted(shape.keys() - SHAPE - {"window_pattern"}):
        reason = "an architecture later than the one that can be imported"
        raise CheckpointError(f"{where}: model_config has {', '.join(strange)}: {reason}")
    for name in sorted(SHAPE):
        if type(value := shape.get(name)) is not int or value < 1:
            raise CheckpointError(f"{where}: {name} is {value!r:.60}, expected a number above 0")
    shape = {name: shape[name] for name in SHAPE}
    if unused := -shape["vocab_size"] % 64:
        size = shape["vocab_size"] = shape["vocab_size"] + unused
        print0(f"{where}: the vocabulary is padded to {size}; nothing forbids to sample those ids")
    return GPTConfig(**shape, head_dim=shape["n_embd"] // shape["n_head"], logit_softcap=15.0)


# ---------------------------------------------------------------- the pickled tokenizer


class EncodingState:
    """Takes the place of tiktoken's class: keeps its state and does nothing with it."""

    def __setstate__(self, state):
        self.state = state


class DataUnpickler(pickle.Unpickler):
    """Finds one class, EncodingState, and refuses every other name."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) != ("tiktoken.core", "Encoding"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return EncodingState


def read_pickled_tokenizer(path: Path) -> tuple[dict[bytes, int], dict[str, int], str]:
    """(ranks of the tokens, ids of the special tokens, split pattern) of a tiktoken.Encoding.

    No code in the pickle runs: the only thing that it can name is EncodingState. Raises DataError.
    """
    try:
        data = path.read_bytes()
        # subtle: the memo is an array, and a forged index would make it fill the memory.
        for opcode, argument, _ in pickletools.genops(data):
            if "PUT" in opcode.name and int(argument) > len(data):
                raise pickle.UnpicklingError(f"memo index {argument} in {len(data)} bytes")
        state = DataUnpickler(io.BytesIO(data)).load().state
        ranks, specials, pattern = (
            state[name] for name in ("mergeable_ranks", "special_tokens", "pat_str")
        )
        for table, kind in ((ranks, bytes), (specials, str)):
            for token, number in table.items():
                if type(token) is not kind or type(number) is not int:
                    raise ValueError(f"found the token {token!r:.40} with the id {number!r:.40}")
        if not isinstance(pattern, str):
            raise ValueError(f"pat_str is {pattern!r:.40}")
    except OSError as error:
        raise DataError(f"{path} could not be read: {error.strerror}") from error
    except Exception as error:  # a pickle can raise nearly anything
        reason = f"not a plain pickle of a tiktoken.Encoding with its tokens: {error!r:.200}"
        raise DataError(f"{path} is {reason}. Nothing in it was run") from error
    return ranks, specials, pattern
