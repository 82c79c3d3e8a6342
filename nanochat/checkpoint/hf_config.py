"""GPTConfig in the form of Hugging Face's config.json, and back."""

import math

from nanochat.common import CheckpointError, ConfigError
from nanochat.gpt import GPTConfig

WHOLE = (  # numbers of config.json that are whole and above 0
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)


def to_hf(config: GPTConfig) -> dict:
    """config.json of transformers' class, every field but the special ids (the tokenizer's)."""
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.sequence_len,
        "hidden_act": "relu2",
        "attention_dropout": 0.0,
        "attention_bias": False,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "final_logit_softcapping": config.logit_softcap,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": "float32",
    }


def from_hf(config: dict) -> GPTConfig:
    """The inverse of to_hf; raises ConfigError on a model that this class does not compute,
    CheckpointError on a number that is none."""
    expected = {"model_type": "nanochat", "hidden_act": "relu2", "attention_bias": False}
    expected |= {"tie_word_embeddings": False}
    if isinstance(config.get("hidden_size"), int):
        expected |= {"intermediate_size": 4 * config["hidden_size"]}
    for name, value in expected.items():
        if config.get(name) != value:
            raise ConfigError(
                f"config.json has {name} = {config.get(name)!r}; this model needs {value!r}"
            )
    for name in WHOLE:
        number(config, name, int)
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    if config.get("head_dim") is not None:
        head_dim = number(config, "head_dim", int)
    softcap = config.get("final_logit_softcapping")
    return GPTConfig(
        n_layer=config["num_hidden_layers"],
        n_embd=config["hidden_size"],
        n_head=config["num_attention_heads"],
        n_kv_head=config["num_key_value_heads"],
        head_dim=head_dim,
        vocab_size=config["vocab_size"],
        sequence_len=config["max_position_embeddings"],
        rms_norm_eps=number(config, "rms_norm_eps"),
        rope_theta=number(config["rope_parameters"], "rope_theta"),
        # subtle: transformers refuses a soft-cap that is no float.
        logit_softcap=None if softcap is None else number(config, "final_logit_softcapping"),
    )


def number(record: dict, name: str, kind: type = float):
    """record[name] as `kind`; CheckpointError unless it is finite and above 0 (and whole)."""
    value = record.get(name)
    kinds = (int,) if kind is int else (int, float)
    if type(value) not in kinds or not 0 < value < math.inf:
        what = "a whole number" if kind is int else "a number"
        raise CheckpointError(f"config.json has {name} = {value!r:.60}; expected {what} above 0")
    return kind(value)


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
