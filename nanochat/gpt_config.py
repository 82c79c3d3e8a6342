"""What defines the function that the model computes, and its form in Hugging Face's config.json."""

from dataclasses import dataclass

from nanochat.common import ConfigError


@dataclass(frozen=True)
class GPTConfig:
    """Everything that defines the function computed; saved with every checkpoint."""

    n_layer: int
    n_embd: int
    n_head: int
    n_kv_head: int
    head_dim: int
    vocab_size: int
    sequence_len: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    logit_softcap: float | None = 15.0

    def __post_init__(self):
        if self.n_embd != self.n_head * self.head_dim or self.head_dim % 2:
            raise ConfigError(
                f"width {self.n_embd} is not {self.n_head} heads x head_dim {self.head_dim} (even)"
            )
        if self.n_head % self.n_kv_head:
            divisors = [d for d in range(1, self.n_head + 1) if self.n_head % d == 0]
            nearest = min(divisors, key=lambda d: abs(d - self.n_kv_head))
            raise ConfigError(
                f"{self.n_kv_head} key/value heads do not divide {self.n_head} heads; "
                f"the nearest that does is {nearest}"
            )
        if self.vocab_size % 64:
            raise ConfigError(
                f"vocabulary {self.vocab_size} is no multiple of 64; "
                f"the next is {-(-self.vocab_size // 64) * 64}"
            )

    @classmethod
    def from_depth(
        cls, depth: int, vocab_size: int, head_dim: int = 128, **overrides
    ) -> "GPTConfig":
        """Width 64 * depth, rounded up to a multiple of head_dim; heads = width / head_dim.

        Example: GPTConfig.from_depth(20, vocab_size=65536) has n_embd 1280 and n_head 10.
        """
        if depth < 1:
            raise ConfigError(f"depth {depth}: a model has at least 1 layer")
        n_embd = -(-64 * depth // head_dim) * head_dim
        shape = {
            "n_layer": depth,
            "n_embd": n_embd,
            "n_head": n_embd // head_dim,
            "head_dim": head_dim,
        }
        shape["n_kv_head"] = shape["n_head"]
        return cls(**{**shape, "vocab_size": vocab_size, **overrides})

    def to_hf(self) -> dict:
        """config.json of transformers' class, every field but the special ids (the tokenizer's)."""
        return {
            "architectures": ["NanoChatForCausalLM"],
            "model_type": "nanochat",
            "vocab_size": self.vocab_size,
            "hidden_size": self.n_embd,
            "intermediate_size": 4 * self.n_embd,
            "num_hidden_layers": self.n_layer,
            "num_attention_heads": self.n_head,
            "num_key_value_heads": self.n_kv_head,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.sequence_len,
            "hidden_act": "relu2",
            "attention_dropout": 0.0,
            "attention_bias": False,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "final_logit_softcapping": self.logit_softcap,
            "initializer_range": 0.02,
            "tie_word_embeddings": False,
            "use_cache": True,
            "dtype": "float32",
        }

    @classmethod
    def from_hf(cls, config: dict) -> "GPTConfig":
        """The inverse of to_hf; raises ConfigError on a model that this class does not compute."""
        expected = {"model_type": "nanochat", "hidden_act": "relu2", "attention_bias": False}
        expected |= {
            "tie_word_embeddings": False,
            "intermediate_size": 4 * config.get("hidden_size", 0),
        }
        for name, value in expected.items():
            if config.get(name) != value:
                raise ConfigError(
                    f"config.json has {name} = {config.get(name)!r}; this model needs {value!r}"
                )
        return cls(
            n_layer=config["num_hidden_layers"],
            n_embd=config["hidden_size"],
            n_head=config["num_attention_heads"],
            n_kv_head=config["num_key_value_heads"],
            head_dim=config.get("head_dim")
            or config["hidden_size"] // config["num_attention_heads"],
            vocab_size=config["vocab_size"],
            sequence_len=config["max_position_embeddings"],
            rms_norm_eps=config["rms_norm_eps"],
            rope_theta=config["rope_parameters"]["rope_theta"],
            logit_softcap=config["final_logit_softcapping"],
        )
