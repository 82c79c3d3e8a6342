"""Keys and values of the tokens that a model has already read, so that each new token costs one
token's work.

Every row has its own slot and its own length, so rows of different lengths decode together.
Dimensions: B rows in use, R rows allocated, Hkv key/value heads, T new tokens, S slots of which a
step reads the first few, K head_dim.
"""

from collections.abc import Sequence

import torch

from nanochat.gpt import GPTConfig

GROW_BY = 128  # slots are allocated in multiples of this
READ_BY = 64  # a step reads slots in multiples of this, so that few different shapes occur


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


class KVCache:
    """Per layer, keys and values (R, Hkv, S, K), of which rows [0, B) are in use and row b holds
    lengths[b] tokens.

    `GPT.features(inputs, cache)` drives it: positions(T), then mask(T) and update(layer, k, v) in
    each layer, then advance(T). A right-padded prefill is followed by set_lengths with the true
    lengths; what padding wrote lies beyond them, is never visible, and is overwritten. Lengths are
    known on the host too, so no step waits for the device.

    Example: cache = KVCache(model.config, rows=2, device="cpu", dtype=torch.float32);
    model.features(ids, cache)
    """

    def __init__(self, config: GPTConfig, rows: int, device, dtype: torch.dtype):
        self.config, self.device, self.dtype = config, torch.device(device), dtype
        self.lengths: list[int] = [0] * rows
        self.lengths_on_device = torch.zeros(rows, dtype=torch.int64, device=device)
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self._allocate(rows, GROW_BY)
        self._forget_step()

    # ------------------------------------------------------------ what GPT.features calls

    def positions(self, T: int) -> torch.Tensor:
        """(B, T) int64: where the next T tokens of every row stand. Makes room for them."""
        new = torch.arange(T, device=self.device)
        self._positions = self.lengths_on_device[:, None] + new
        longest = max(self.lengths, default=0)
        self._fresh = longest == 0
        needed = longest + T
        if needed > self.keys[0].shape[2]:
            self._allocate(self.keys[0].shape[0], needed)
        self._read = min(round_up(needed, READ_BY), self.keys[0].shape[2])
        slots = torch.arange(self._read, device=self.device)
        self._mask = None if self._fresh else (slots <= self._positions[..., None])[:, None]
        return self._positions

    def mask(self, T: int) -> torch.Tensor | None:
        """(B, 1, T, S) bool, true where a query sees a key; None while the cache is empty: plain
        causal attention."""
        assert self._positions is not None and self._positions.shape[1] == T, "positions(T) first"
        return self._mask

    def update(
        self, layer: int, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores k, v (B, Hkv, T, K) of the new tokens; returns all that the rows hold, each (B,
        Hkv, S, K)."""
        B, _, T, _ = k.shape
        keys, values = self.keys[layer], self.values[layer]
        if self._fresh:
            keys[:B, :, :T], values[:B, :, :T] = k, v
            return k, v
        rows = torch.arange(B, device=self.device)[:, None]
        # subtle: two index tensors around a slice put the indexed dimensions first: (B, T, Hkv, K)
        keys[rows, :, self._positions] = k.transpose(1, 2)
        values[rows, :, self._positions] = v.transpose(1, 2)
        return keys[:B, :, : self._read], values[:B, :, : self._read]

    def advance(self, T: int) -> None:
        """Counts T more tokens in every row."""
        self.lengths = [n + T for n in self.lengths]
        self.lengths_on_device = self.lengths_on_device + T
        self._forget_step()

    # ------------------------------------------------------------ what the engine calls

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """Shortens every row to its true length, after a right-padded prefill or to take tokens
        back."""
        assert len(lengths) == len(self.lengths)
        assert all(0 <= new <= old for new, old in zip(lengths, self.lengths, strict=True))
        self._replace_lengths(list(lengths))

    def select(self, rows: Sequence[int]) -> None:
        """Row i becomes what row rows[i] was: drops, reorders or replicates. Rows that stay in
        place are not copied."""
        if len(rows) > self.keys[0].shape[0]:
            self._allocate(len(rows), self.keys[0].shape[2])
        moved = [i for i, row in enumerate(rows) if i != row]
        longest = max((self.lengths[rows[i]] for i in moved), default=0)
        if longest:
            target = torch.tensor(moved, device=self.device)
            source = torch.tensor([rows[i] for i in moved], device=self.device)
            for tensor in (*self.keys, *self.values):
                tensor[target, :, :longest] = tensor[source, :, :longest]
        self._replace_lengths([self.lengths[row] for row in rows])

    def append(self, other: "KVCache") -> None:
        """Adds the rows of `other` after the rows in use."""
        B, joining = len(self.lengths), len(other.lengths)
        longest = max(other.lengths, default=0)
        rows, slots = self.keys[0].shape[0], self.keys[0].shape[2]
        if B + joining > rows or longest > slots:
            self._allocate(max(rows, B + joining), max(slots, longest))
        pairs = zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True)
        for mine, theirs in pairs:
            mine[B : B + joining, :, :longest] = theirs[:joining, :, :longest]
        self._replace_lengths(self.lengths + other.lengths)

    # ------------------------------------------------------------ book-keeping

    def _replace_lengths(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.lengths_on_device = torch.tensor(lengths, dtype=torch.int64, device=self.device)

    def _forget_step(self) -> None:
        self._positions = self._mask = None
        self._fresh, self._read = False, 0

    def _allocate(self, rows: int, slots: int) -> None:
        """Room for `rows` rows of at least `slots` slots, keeping what is there. Zeros, because a
        masked NaN would still reach the output as 0 * NaN."""
        c = self.config
        shape = (rows, c.n_kv_head, round_up(slots, GROW_BY), c.head_dim)
        for tensors in (self.keys, self.values):
            for layer in range(c.n_layer):
                grown = torch.zeros(shape, dtype=self.dtype, device=self.device)
                if layer < len(tensors):
                    old = tensors[layer]
                    grown[: old.shape[0], :, : old.shape[2]] = old
                    tensors[layer] = grown
                else:
                    tensors.append(grown)
