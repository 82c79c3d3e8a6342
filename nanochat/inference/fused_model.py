"""The model's weights once more, in compute dtype and laid out for generation; gpt.py is its twin.

Query, key and value projections are one matrix. Tokens of several sequences form one flat row (N,);
attention alone knows whose token is whose (kv_cache.AttentionBatch).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from nanochat.gpt import GPT, rotary_tables
from nanochat.inference.kv_cache import AttentionBatch, KVCache, padded_size
from nanochat.inference.scheduler import Chunk


class Layer(NamedTuple):
    """One block's matrices, each (outputs, inputs); qkv: rows of q, then k, then v."""

    qkv: torch.Tensor
    o: torch.Tensor
    fc1: torch.Tensor
    fc2: torch.Tensor


class FusedModel:
    """A GPT's function, for generation. In float32 all matrices but qkv are the GPT's own.

    Example: with batch = AttentionBatch.of_chunks([Chunk(0, 0, [1] * 5)], "cpu"),
    fused.logits(fused.features(ids, batch)) is model(ids[None])[0], (5, V).
    """

    def __init__(self, model: GPT):
        self.master, self.config = model, model.config
        self.dtype, self.device = model.compute_dtype, model.device
        own = []
        for weights in self.masters():
            cast = [weight.to(self.dtype) for weight in weights]
            own.append(torch.cat(cast) if len(cast) > 1 else cast[0])
        self.embedding, self.head, *matrices = own
        self.layers = [Layer(*matrices[i : i + 4]) for i in range(0, len(matrices), 4)]
        places = torch.arange(self.config.sequence_len + 1, device=self.device)
        cos, sin = rotary_tables(places, self.config.head_dim, self.config.rope_theta)
        # (S, 1, K): y = x cos + (x2, x1) sin with both halves of y in one go
        self.cos = torch.cat([cos, cos], dim=-1)[:, None]
        self.sin = torch.cat([sin, -sin], dim=-1)[:, None]

    def masters(self) -> Iterator[list[torch.Tensor]]:
        """The GPT's weights, by the matrix here that holds them; of several ranks, all call it."""
        trunk = self.master.model
        groups = [[trunk.embed_tokens], [self.master.lm_head]]
        for block in trunk.layers:
            attention, mlp = block.self_attn, block.mlp
            groups += [[attention.q_proj, attention.k_proj, attention.v_proj], [attention.o_proj]]
            groups += [[mlp.fc1], [mlp.fc2]]
        for group in groups:
            weights = [module.weight.detach() for module in group]
            yield [w.full_tensor() if hasattr(w, "full_tensor") else w for w in weights]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copies the GPT's present weights here, in place."""
        own = [self.embedding, self.head, *(matrix for layer in self.layers for matrix in layer)]
        for matrix, weights in zip(own, self.masters(), strict=True):
            for part, weight in zip(matrix.split([len(w) for w in weights]), weights, strict=True):
                if part.data_ptr() != weight.data_ptr():
                    part.copy_(weight)

    def features(self, ids: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
        """ids (N,) int64 -> (N, D) in compute dtype, after the last norm; N rows as in batch."""
        c = self.config
        turned = c.n_head + c.n_kv_head  # heads that rotate
        cos, sin = self.cos[batch.positions], self.sin[batch.positions]  # (N, 1, K)
        x = self._norm(F.embedding(ids, self.embedding))
        for i, layer in enumerate(self.layers):
            qkv = F.linear(self._norm(x), layer.qkv).view(len(ids), -1, c.head_dim)
            qk = self._rotate(qkv[:, :turned], cos, sin)
            y = batch.attend(i, qk[:, : c.n_head], qk[:, c.n_head :], qkv[:, turned:])
            x = x + F.linear(y, layer.o)
            hidden = F.linear(self._norm(x), layer.fc1).relu_()
            if self.dtype == torch.float16:  # subtle: as in gpt.MLP, for float16 ends at 255.9^2
                x = x + F.linear(hidden.div_(16).square_(), layer.fc2) * 256
            else:
                x = x + F.linear(hidden.square_(), layer.fc2)
        return self._norm(x)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """(N, D) -> (N, V) float32, soft-capped."""
        logits, cap = F.linear(features, self.head).float(), self.config.logit_softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def logits_of_rows(
        self, chunks: Sequence[Chunk], rows: Sequence[int], cache: KVCache | None
    ) -> torch.Tensor:
        """(len(rows), V): the logits of those rows of a pass over the tokens of `chunks`."""
        batch = AttentionBatch.of_chunks(chunks, self.device, cache)
        ids = [id for chunk in chunks for id in chunk.tokens]
        ids += [0] * (len(batch.positions) - len(ids))
        features = self.features(torch.tensor(ids, device=self.device), batch)
        padding = [0] * (padded_size(len(rows)) - len(rows))
        return self.logits(features[[*rows, *padding]])[: len(rows)]

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        """gpt.norm, with the same bits."""
        return F.rms_norm(x, x.shape[-1:], eps=self.config.rms_norm_eps)

    def _rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """gpt.rotate, then the norm: x (N, H + Hkv, K), both in float32."""
        y = x.float()
        first, second = y.chunk(2, dim=-1)
        y = torch.addcmul(y * cos, torch.cat([second, first], dim=-1), sin)
        return self._norm(y).to(x.dtype)
