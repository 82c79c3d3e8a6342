"""GPTConfig in the form of Hugging Face's config.json, and back."""

import math

from nanochat.common import CheckpointError, ConfigError
from nanochat.gpt import GPTConfig

# The fields of GPTConfig by transformers' names.
WHOLE_NUMBERS = {
    "num_hidden_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_kv_head",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "sequence_len",
}
NUMBERS = {
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "final_logit_softcapping": "logit_softcap",
}
FIXED = {"model_type": "nanochat", "hidden_act": "relu2", "attention_bias": False}


def to_hf(config: GPTConfig) -> dict:
    """config.json of transformers' class, but for the special ids."""
    return {
        "architectures": ["NanoChatForCausalLM"],
        **FIXED,
        **{name: getattr(config, field) for name, field in (WHOLE_NUMBERS | NUMBERS).items()},
        "tie_word_embeddings": config.tie_word_embeddings,
        "intermediate_size": 4 * config.n_embd,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "float32",
    }


def from_hf(settings: dict) -> GPTConfig:
    """The inverse of to_hf; ConfigError for a model that GPT does not compute."""
    values = {}
    for name, field in (WHOLE_NUMBERS | NUMBERS).items():
        value, whole = settings.get(name), name in WHOLE_NUMBERS
        no_softcap = value is None and field == "logit_softcap"
        kinds, what = ((int,), "a whole number") if whole else ((int, float), "a number")
        if not no_softcap and (type(value) not in kinds or not 0 < value < math.inf):
            raise CheckpointError(
                f"config.json has {name} = {value!r:.60}; expected {what} above 0"
            )
        # subtle: transformers refuses a soft-cap of 15 without a point
        values[field] = value if whole or no_softcap else float(value)
    for name, value in (FIXED | {"intermediate_size": 4 * values["n_embd"]}).items():
        if settings.get(name) != value:
            raise ConfigError(
                f"config.json has {name} = {settings.get(name)!r}; this model needs {value!r}"
            )
    tied = settings.get("tie_word_embeddings")
    if type(tied) is not bool:
        raise CheckpointError(f"config.json has tie_word_embeddings = {tied!r}; true or false")
    return GPTConfig(**values, tie_word_embeddings=tied)
