"""A checkpoint as one GGUF file, which llama.cpp, Ollama and LM Studio run.

llama.cpp has no nanochat architecture, but its `apertus` computes the same function once the
weights are folded: xIELU with alpha_p = ln(e - 1), alpha_n = -60 and beta = 0 is relu(x)^2; the
rows of the embedding are normalised in advance; the two halves of each head of the query and key
matrices are swapped, which reverses the rotation; norms before and after a rotation are the same.
It has no logit soft-cap, so a model with one is refused.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import dequantize, quantize

from nanochat.bpe.tokenizer_json import to_json, visible_merges
from nanochat.checkpoint_manager import load_checkpoint
from nanochat.common import CheckpointError
from nanochat.conversation import plain_chat_template, stop_ids
from nanochat.gpt import GPTConfig
from nanochat.tokenizer import SPLIT_PATTERN, Tokenizer

ARCHITECTURE = "apertus"
TYPES = {  # of the matrices; vectors are float32
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
ALPHA_P, ALPHA_N = math.log(math.expm1(1)), -60.0  # softplus of them: 1, and 9e-27
XIELU_EPS = -1e-6
Q8_BLOCK = 32  # numbers that share a scale
NAMES = {  # in a layer: transformers' name -> GGUF's
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def check_gguf_can_hold(config: GPTConfig, tokenizer: Tokenizer, kind: str = "f16") -> None:
    """CheckpointError for a model that llama.cpp would compute or tokenize differently."""
    if config.logit_softcap is not None:
        raise CheckpointError(
            f"the model caps its logits at {config.logit_softcap:g}, which llama.cpp cannot. Train "
            f"with --logit-softcap=None for GGUF, or write the uncapped model with --drop-softcap"
        )
    if tokenizer.split_pattern != SPLIT_PATTERN:
        raise CheckpointError(
            f"the tokenizer splits text by {tokenizer.split_pattern!r}; llama.cpp knows only "
            f"Llama-3's pattern, nanochat's default"
        )
    rows = (config.n_embd, config.n_head * config.head_dim)
    if kind == "q8_0" and any(row % Q8_BLOCK for row in rows):
        raise CheckpointError(
            f"q8_0 stores rows in blocks of {Q8_BLOCK} numbers, and this model's rows have "
            f"{max(rows, key=lambda row: row % Q8_BLOCK)}; write f16 or bf16 (--type)"
        )


def swap_halves(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """(heads * K, D) with the two halves of every head exchanged."""
    halves = weight.unflatten(0, (-1, 2, head_dim // 2))  # (H, 2, K/2, D)
    return halves.flip(1).flatten(0, 2)


def normalised(weights: dict[str, torch.Tensor], config: GPTConfig) -> dict[str, torch.Tensor]:
    """The weights in float32, the embedding's rows normalised: a model that computes the same."""
    weights = {name: tensor.float() for name, tensor in weights.items()}
    embedding = weights["model.embed_tokens.weight"]
    scale = torch.rsqrt(embedding.square().mean(-1, keepdim=True) + config.rms_norm_eps)
    return {**weights, "model.embed_tokens.weight": embedding * scale}


def fold(weights: dict[str, torch.Tensor], config: GPTConfig) -> dict[str, torch.Tensor]:
    """The weights in float32 under GGUF's names, as llama.cpp's apertus needs them."""
    weights = normalised(weights, config)
    ones = torch.ones(config.n_embd)
    folded = {"token_embd.weight": weights["model.embed_tokens.weight"], "output_norm.weight": ones}
    folded["output.weight"] = weights["lm_head.weight"]
    for layer in range(config.n_layer):
        for theirs, name in NAMES.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            if name in ("attn_q", "attn_k"):
                weight = swap_halves(weight, config.head_dim)
            folded[f"blk.{layer}.{name}.weight"] = weight
        for name in ("attn_norm", "ffn_norm"):
            folded[f"blk.{layer}.{name}.weight"] = ones
        for name in ("attn_q_norm", "attn_k_norm"):
            folded[f"blk.{layer}.{name}.weight"] = torch.ones(config.head_dim)
    return folded


def rounded(name: str, tensor: torch.Tensor, kind: str) -> tuple[np.ndarray, GGMLQuantizationType]:
    """(data of the file, its type): float32 for a vector, `kind` for a matrix. CheckpointError if
    that leaves a number that is not finite."""
    data = np.ascontiguousarray(tensor.numpy(), dtype=np.float32)
    quantization = TYPES[kind][0] if tensor.ndim == 2 else GGMLQuantizationType.F32
    with np.errstate(all="ignore"):  # an overflow is found below
        stored = quantize(data, quantization)
        whole = np.isfinite(data).all() and np.isfinite(dequantize(stored, quantization)).all()
    if not whole:
        largest = np.abs(data[np.isfinite(data)]).max(initial=0)
        raise CheckpointError(
            f"{name} has numbers that are not finite in {kind}; the largest finite one is "
            f"{largest:.3g}. Write bf16 or q8_0 (--type), or a checkpoint that did not diverge"
        )
    return stored, quantization


def rounded_weights(
    weights: dict[str, torch.Tensor], config: GPTConfig, kind: str
) -> dict[str, torch.Tensor]:
    """Native weights with the numbers that the file holds, to compare llama.cpp with.

    Folding moves whole rows, and each row is rounded by itself.
    """
    return {
        name: torch.from_numpy(dequantize(*rounded(name, tensor, kind)).copy())
        for name, tensor in normalised(weights, config).items()
    }


def add_config(writer: GGUFWriter, config: GPTConfig, name: str, kind: str) -> None:
    settings = {
        "name": name,
        "file_type": TYPES[kind][1],
        "quantization_version": 2,
        "vocab_size": config.vocab_size,
        "context_length": config.sequence_len,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": 4 * config.n_embd,
        "head_count": config.n_head,
        "head_count_kv": config.n_kv_head,
        **dict.fromkeys(("key_length", "value_length", "rope_dimension_count"), config.head_dim),
        "rope_freq_base": config.rope_theta,
        "layer_norm_rms_eps": config.rms_norm_eps,
    }
    xielu = {"alpha_p": ALPHA_P, "alpha_n": ALPHA_N, "beta": 0.0, "eps": XIELU_EPS}
    settings |= {f"xielu_{name}": [value] * config.n_layer for name, value in xielu.items()}
    for setting, value in settings.items():
        getattr(writer, f"add_{setting}")(value)


def add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    """The ids, names and merges as tokenizer.json has them."""
    vocabulary = json.loads(to_json(tokenizer.parts))["model"]["vocab"] | tokenizer.special_ids
    names = sorted(vocabulary, key=vocabulary.get)
    types = [TokenType.NORMAL if size else TokenType.UNUSED for size in tokenizer.token_bytes()]
    for token_id in tokenizer.special_ids.values():
        types[token_id] = TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(names)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in visible_merges(tokenizer.merges)])
    end, bos = stop_ids(tokenizer)
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(end)
    writer.add_add_bos_token(True)
    writer.add_chat_template(plain_chat_template())


def write_gguf(
    checkpoint: Path, output: Path, kind: str = "f16", drop_softcap: bool = False
) -> None:
    """Writes the model of a checkpoint folder to `output`; CheckpointError if the file cannot hold
    it. kind: a key of TYPES. drop_softcap: leave out a soft-cap, which changes the model."""
    weights, config, tokenizer, run = load_checkpoint(checkpoint)
    if drop_softcap:
        config = replace(config, logit_softcap=None)
    check_gguf_can_hold(config, tokenizer, kind)
    writer = GGUFWriter(output, ARCHITECTURE)
    add_config(writer, config, f"nanochat {run['stage']} {run['tag']}", kind)
    add_tokenizer(writer, tokenizer)
    for name, tensor in fold(weights, config).items():
        data, quantization = rounded(name, tensor, kind)
        writer.add_tensor(name, data, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def modelfile(file: str, config: GPTConfig) -> str:
    """Ollama's Modelfile, the chat template in its language (Ollama adds <|bos|>); not tested."""
    text = Path(__file__).with_name("Modelfile").read_text(encoding="utf-8")
    return text.replace("{file}", file).replace("{context}", str(config.sequence_len))
