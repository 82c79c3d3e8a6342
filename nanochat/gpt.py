"""The model: a decoder-only Transformer, computed and named as transformers' own `nanochat` class.

Dimensions: B batch, T time, D model width, H heads, Hkv key/value heads, K head_dim, V vocabulary.
Parameters are float32 masters; the forward pass casts them to `model.compute_dtype`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nanochat.attention import attention, document_numbers
from nanochat.common import ConfigError
from nanochat.layers import Linear, ReluSquared

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


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
    tie_word_embeddings: bool = False  # the head is the embedding

    def __post_init__(self):
        if self.n_embd != self.n_head * self.head_dim or self.head_dim % 2:
            raise ConfigError(
                f"width {self.n_embd} is not {self.n_head} heads x head_dim {self.head_dim} (even)"
            )
        if self.n_head % self.n_kv_head:
            divisors = [d for d in range(1, self.n_head + 1) if self.n_head % d == 0]
            raise ConfigError(
                f"{self.n_kv_head} key/value heads do not divide {self.n_head} heads; "
                f"the nearest that does is {min(divisors, key=lambda d: abs(d - self.n_kv_head))}"
            )
        if self.vocab_size % 64:
            raise ConfigError(
                f"vocabulary {self.vocab_size} is no multiple of 64; "
                f"the next is {-(-self.vocab_size // 64) * 64}"
            )

    @classmethod
    def from_depth(
        cls, depth: int, vocab_size: int, head_dim: int = 128, width: int | None = None, **overrides
    ) -> Self:
        """A model of width 64 * depth, or `width`, rounded up to whole heads: d20 has 10 of 128."""
        width = 64 * depth if width is None else width
        if depth < 1 or width < 1:
            raise ConfigError(f"depth {depth}, width {width}: expected at least 1 layer and 1 wide")
        heads = -(-width // head_dim)
        shape = {"n_layer": depth, "n_embd": heads * head_dim, "head_dim": head_dim}
        shape |= {"n_head": heads, "n_kv_head": heads, "vocab_size": vocab_size}
        return cls(**shape | overrides)


def norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last dimension, no parameters, in float32 (Zhang & Sennrich 2019)."""
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotary_tables(positions: torch.Tensor, head_dim: int, theta: float) -> tuple:
    """cos and sin, each (..., K/2) float32, of positions * theta^(-2i/K) (Su et al. 2021)."""
    i = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    angles = positions.float()[..., None] * theta ** (-i / head_dim)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the split halves of x (B, T, H, K) by tables (T, 1, K/2).

    y1 = x1 cos + x2 sin, y2 = x2 cos - x1 sin.
    """
    x1, x2 = x.float().chunk(2, dim=-1)
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Attention's projections. A call makes queries, keys and values of norm(x), the first two with
    rotary positions, then normalised; grouped if Hkv < H."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        D, H, Hkv, K = config.n_embd, config.n_head, config.n_kv_head, config.head_dim
        self.q_proj, self.o_proj = Linear(D, H * K), Linear(H * K, D)
        self.k_proj, self.v_proj = Linear(D, Hkv * K), Linear(D, Hkv * K)

    def forward(self, x: torch.Tensor, cos, sin) -> tuple[torch.Tensor, ...]:
        """x (B, T, D) -> q (B, T, H, K), k and v (B, T, Hkv, K)."""
        eps, K = self.config.rms_norm_eps, self.config.head_dim
        x = norm(x, eps)
        q, k, v = (p(x).view(*x.shape[:2], -1, K) for p in (self.q_proj, self.k_proj, self.v_proj))
        return norm(rotate(q, cos, sin), eps), norm(rotate(k, cos, sin), eps), v


class MLP(nn.Module):
    """fc2(relu(fc1(x))^2), width 4 D."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.fc1 = Linear(config.n_embd, 4 * config.n_embd)
        self.fc2 = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)
        if x.dtype != torch.float16:
            return self.fc2(ReluSquared.apply(x))
        # subtle: float16 ends at 65,504 = 255.9^2; a 16th squared reaches 16 times as far.
        return self.fc2(ReluSquared.apply(x / 16)) * 256


class Block(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x)). recompute: keep nothing for the backward pass but
    x, and compute the rest again there."""

    recompute = False

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.eps = config.rms_norm_eps
        self.self_attn, self.mlp = Attention(config), MLP(config)

    def forward(self, *inputs) -> torch.Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.compute, *inputs, use_reentrant=False)
        return self.compute(*inputs)

    def compute(self, x, cos, sin, documents, rows, parts) -> torch.Tensor:
        """x (B, T, D) -> (B, T, D), or of `rows` of the B * T places alone (len(rows), D)."""
        project, attend, finish = parts
        y = attend(*project(self.self_attn, x, cos, sin), documents)  # (B, T, H, K)
        places = x.flatten(0, 1), y.flatten(2).flatten(0, 1)
        if rows is None:
            return finish(self, *places).view(x.shape)
        return finish(self, *(place.index_select(0, rows) for place in places))

    def finish(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What each place does alone: x (N, D), y (N, H K) from the heads -> (N, D)."""
        x = x + self.self_attn.o_proj(y)
        return x + self.mlp(norm(x, self.eps))


class Trunk(nn.Module):
    """Embedding and blocks; the part that transformers' class calls `model`."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        # subtle: an empty weight, because drawing on the meta device imports torch's compiler
        weight = torch.empty(config.vocab_size, config.n_embd)
        self.embed_tokens = nn.Embedding(*weight.shape, _weight=weight)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))


class GPT(nn.Module):
    """The language model. `model(inputs)` gives soft-capped logits (B, T, V) in float32.

    Example: GPT(GPTConfig.from_depth(4, vocab_size=8192))(ids).shape == (B, T, 8192), ids (B, T).
    """

    def __init__(self, config: GPTConfig, seed: int | None = 42):
        """seed: of the weights; None leaves them to whoever loads them."""
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.stop_ids: tuple[int, ...] = ()
        self.document_start: int | None = None  # id; set: documents do not see each other
        self.model = Trunk(config)
        self.lm_head = Linear(config.n_embd, config.vocab_size)
        self.tie()
        if seed is not None:
            self.init_weights(seed)
        if self.device.type != "meta":  # subtle: computing there would import the compiler, too
            self.init_rotary()

    @classmethod
    def from_weights(cls, config: GPTConfig, weights: dict[str, torch.Tensor] | None) -> Self:
        """A model of these `weights`, by name, on their device. None: they come later, and take no
        main memory until then."""
        with torch.device("meta"):
            model = cls(config, seed=None)
        if weights is None:
            model.to_empty(device="cpu")
        else:
            model.load_state_dict(weights, assign=True)
        model.tie()
        model.init_rotary()
        return model

    def tie(self) -> None:
        """Makes head and embedding one parameter, called model.embed_tokens.weight, if they are."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def init_rotary(self) -> None:
        """Tables of every position, cos and sin (T, 1, K/2): made once, not in each layer."""
        c = self.config
        positions = torch.arange(c.sequence_len, device=self.device)
        cos, sin = rotary_tables(positions, c.head_dim, c.rope_theta)
        self.register_buffer("cos", cos[:, None], persistent=False)
        self.register_buffer("sin", sin[:, None], persistent=False)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Uniform, standard deviation 1/sqrt(D); output projections zero and the head near zero, so
        that the first loss is ln V. A tied head is small: as embedding its scale does not matter,
        for a norm follows. Drawn from `seed` and the shape alone, on any device."""
        generator = torch.Generator().manual_seed(seed)
        D = self.config.n_embd
        bound = math.sqrt(3 / D)
        std = min(0.02, 5 / D) if self.config.tie_word_embeddings else 1
        tables = {EMBEDDING: std, HEAD: 0.001}
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "fc2.weight")):
                parameter.zero_()
            elif name in tables:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * tables[name])
            else:
                parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)

    def use_fp8(self) -> None:
        """From now on the blocks train with products in 8 bits: see layers.py."""
        for layer in self.model.layers.modules():
            if isinstance(layer, Linear):
                layer.fp8 = True

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    def features(
        self, inputs: torch.Tensor, rows=None, parts=(Attention.forward, attention, Block.finish)
    ) -> torch.Tensor:
        """inputs (B, T) int64 -> (B, T, D) in compute dtype, after the last norm, T at most
        sequence_len; of `rows` (N,) of the B * T places alone (N, D). parts: those of a block, may
        be compiled."""
        eps, T = self.config.rms_norm_eps, inputs.shape[1]
        x = norm(self.model.embed_tokens(inputs).to(self.compute_dtype), eps)
        start = self.document_start
        documents = None if start is None else document_numbers(inputs, start)
        places = self.cos[:T], self.sin[:T], documents
        *blocks, last = self.model.layers
        for block in blocks:
            x = block(x, *places, None, parts)
        return norm(last(x, *places, rows, parts), eps)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., V) float32, soft-capped."""
        return soft_cap(self.lm_head(features).float(), self.config.logit_softcap)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.logits(self.features(inputs))

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, sequence_len: int | None = None) -> int:
        """Training FLOPs per token: 6 (params - embedding) + 12 L H K T (Chowdhery et al. 2022)."""
        c, matmul_params = self.config, self.num_params()
        if not c.tie_word_embeddings:  # else the embedding is the head, too
            matmul_params -= self.model.embed_tokens.weight.numel()
        T = sequence_len or c.sequence_len
        return 6 * matmul_params + 12 * c.n_layer * c.n_head * c.head_dim * T

    def flops_without_target(self) -> int:
        """The part of flops_per_token that loss.py spares a place without target on a CPU."""
        last = self.model.layers[-1]
        modules = last.self_attn.o_proj, last.mlp, self.lm_head
        return 6 * sum(p.numel() for module in modules for p in module.parameters())

    @torch.no_grad()
    def generate(
        self, tokens: list[int], max_tokens: int, temperature=1.0, top_k=None, top_p=None, seed=42
    ) -> Iterator[int]:
        """Yields up to `max_tokens` ids that continue `tokens`, ending before a stop id. The slow
        twin of engine.py: the whole sequence is computed anew for each id."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.tensor([tokens], device=self.device)
        for _ in range(max_tokens):
            logits = self(ids[:, -self.config.sequence_len :])[0, -1].cpu()  # (V,)
            token = draw(logits, temperature, top_k, top_p, generator)
            if token in self.stop_ids:
                return
            yield token
            ids = torch.cat([ids, torch.tensor([[token]], device=ids.device)], dim=1)


def soft_cap(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """c tanh(x / c): the identity near 0, never beyond c; None switches it off."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def draw(logits, temperature, top_k, top_p, generator: torch.Generator) -> int:
    """One id from logits (V,): greedy at temperature 0, else from the top k, of those from the
    smallest set of mass top_p."""
    if temperature == 0:
        return int(logits.argmax())
    probs, order = (logits / temperature).softmax(-1).sort(descending=True, stable=True)
    if top_k is not None:
        probs[top_k:] = 0
    if top_p is not None:
        probs[probs.cumsum(-1) - probs >= top_p * probs.sum()] = 0
    return int(order[torch.multinomial(probs, 1, generator=generator)])
