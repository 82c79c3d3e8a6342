"""Decode steps as CUDA graphs: one launch computes and samples a token for every sequence.

A graph has fixed shapes and addresses: it computes the slots [0, rows), for a few numbers of rows
and of places read. An idle row writes to a place that no sequence reaches.
"""

from collections.abc import Callable, Sequence

import torch

from nanochat.inference.fused_model import FusedModel
from nanochat.inference.kv_cache import AttentionBatch, KVCache
from nanochat.inference.sampling import SamplingParams, draw, sampling_table
from nanochat.inference.scheduler import Chunk

SMALLEST_READ = 256


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


class DecodeGraphs:
    """Runs a step in which every sequence computes one token; captures its graph the first time.
    Call `clear` when the cache's tensors have moved."""

    def __init__(self, model: FusedModel, cache: KVCache):
        self.model, self.cache = model, cache
        self.clear()

    def clear(self) -> None:
        """Forgets all graphs, and takes the cache's present size."""
        # of each slot: id, position, sampling_table
        self.idle = torch.tensor([0, self.model.config.sequence_len, 1, 1, 1, 0, 0]).double()
        self.inputs = self.idle.repeat(self.cache.slots, 1).to(self.cache.device)
        self._steps: dict[tuple[int, int], Callable[[], tuple]] = {}
        self._pool = None

    def run(
        self, chunks: Sequence[Chunk], params: Sequence[SamplingParams], noise: Sequence[float]
    ) -> tuple[list[int], torch.Tensor]:
        """The chosen token and the logits (B, V) of every chunk, a single token; otherwise as
        `sample`."""
        rows = min(power_of_two(max(chunk.slot for chunk in chunks) + 1), self.cache.slots)
        longest = max(chunk.start for chunk in chunks) + 1
        read = min(max(power_of_two(longest), SMALLEST_READ), self.cache.room)
        slots = torch.tensor([chunk.slot for chunk in chunks])
        inputs = self.idle.repeat(rows, 1)
        inputs[slots, :2] = torch.tensor([[c.tokens[0], c.start] for c in chunks]).double()
        inputs[slots, 2:] = sampling_table(params, noise)
        self.inputs[:rows].copy_(inputs)
        if (rows, read) not in self._steps:
            self._steps[rows, read] = self._capture(rows, read)
        logits, tokens = self._steps[rows, read]()
        tokens = tokens.tolist()  # the step's only wait for the device
        return [tokens[chunk.slot] for chunk in chunks], logits[slots.to(logits.device)]

    def _compute(self, rows: int, read: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self.inputs[:rows]
        ids, positions = inputs[:, :2].long().unbind(-1)
        batch = AttentionBatch.of_slots(positions, read, self.cache)
        logits = self.model.logits(self.model.features(ids, batch))
        return logits, draw(logits, inputs[:, 2:])

    def _capture(self, rows: int, read: int) -> Callable[[], tuple]:
        """The step as a captured graph's replay, which returns the same tensors each time."""
        stream = torch.cuda.Stream(self.cache.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries allocate what they need before the capture
            for _ in range(2):
                self._compute(rows, read)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            results = self._compute(rows, read)
        self._pool = graph.pool()

        def replay() -> tuple:
            graph.replay()
            return results

        return replay
