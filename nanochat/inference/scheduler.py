"""Says what the next step computes: sequences, slots, reused prefixes, chunks. Touches no tensor.

A sequence is one request's tokens, prompt first; a slot is its place in the key/value cache. Its
tokens stay there until the slot is taken, and serve later sequences that begin with the same: in
place (a conversation's next turn), or as a copy (a system prompt that two share).
"""

from dataclasses import dataclass, field
from itertools import count
from os.path import commonprefix  # of any lists
from typing import NamedTuple


class Chunk(NamedTuple):
    """Tokens of a sequence to compute now, the first at position `start`; `last`: none is left, so
    the next one is sampled."""

    slot: int
    start: int
    tokens: list[int]
    last: bool = True
    sequence: "Sequence | None" = None

    @property
    def single(self) -> bool:
        return len(self.tokens) == 1


class ScheduledStep(NamedTuple):
    """First the copies, in order; then all chunks in one pass, single tokens first, by slot."""

    copies: list[tuple[int, int, int]]  # what KVCache.copy takes
    chunks: list[Chunk]


@dataclass(eq=False)
class Sequence:
    """One request's tokens, the first `computed` of them in slot `slot` of the cache."""

    id: int
    tokens: list[int]  # new ones are appended
    slot: int | None = None
    computed: int = 0
    paused: bool = False  # waits for a tool's result

    def __post_init__(self):
        self.prompt_length = len(self.tokens)

    @property
    def missing(self) -> int:
        """Tokens that are still to be computed."""
        return len(self.tokens) - self.computed


@dataclass(eq=False)
class Slot:
    """A place in the cache; `held`: the tokens in it while no sequence owns it."""

    number: int
    owner: Sequence | None = None
    held: list[int] = field(default_factory=list)
    released: int = 0  # when its last owner left

    @property
    def tokens(self) -> list[int]:
        """Those that are in it, or will be."""
        return self.held if self.owner is None else self.owner.tokens


class Scheduler:
    """Keeps sequences and slots; `schedule` says what the next step computes and counts it as done.

    slots: sequences that run at once. chunk: tokens of prompts that one step may read, lest a long
    prompt stall the others.

    Example: after s.add(Sequence(7, [1, 2, 3])), s.schedule().chunks[0].tokens == [1, 2, 3]; then,
    after s.sequences[7].tokens.append(4), the next step computes [4].
    """

    idle = 8  # free slots that keep their tokens before the oldest is taken again
    share = 16  # the shortest prefix that is worth reusing

    def __init__(self, slots: int, chunk: int = 256):
        self.chunk = chunk
        self.slots = [Slot(i) for i in range(slots)]
        self.sequences: dict[int, Sequence] = {}  # waiting and running ones
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []  # in the order in which they got their slots
        self.read_tokens = self.reused_tokens = 0  # of prompts, in all
        self._clock = count(1)

    def grow(self, slots: int) -> None:
        """Lets at least so many sequences run at once."""
        self.slots += [Slot(i) for i in range(len(self.slots), slots)]

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence in line; it runs when a slot is free."""
        self.sequences[sequence.id] = sequence
        self.waiting.append(sequence)

    def remove(self, id: int) -> None:
        """A sequence leaves; its slot is free at once, and keeps what was computed."""
        sequence = self.sequences.pop(id)
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        slot = self.slots[sequence.slot]
        slot.owner, slot.held = None, sequence.tokens[: sequence.computed]
        slot.released = next(self._clock)

    def forget(self) -> None:
        """The cache is void (new weights, a step that failed): running sequences are computed
        anew."""
        for slot in self.slots:
            slot.held = []
        for sequence in self.running:
            sequence.computed = 0

    def schedule(self) -> ScheduledStep:
        """What to compute now, counted as done: the newest token of every sequence that has got so
        far, and more of others' prompts, within the budget."""
        copies, chunks = [], []
        for sequence in list(self.waiting):
            if all(slot.owner is not None for slot in self.slots):
                break
            self._admit(sequence, copies)
        ready = [s for s in self.running if not s.paused and s.missing]
        takes = {s.id: 1 for s in ready if s.missing == 1}
        takes |= self._deal([s for s in ready if s.missing > 1])
        for sequence in ready:
            if take := takes[sequence.id]:
                start, end = sequence.computed, sequence.computed + take
                tokens, last = sequence.tokens[start:end], end == len(sequence.tokens)
                chunks.append(Chunk(sequence.slot, start, tokens, last, sequence))
                sequence.computed = end
                self.read_tokens += max(0, min(end, sequence.prompt_length) - start)
        chunks.sort(key=lambda chunk: (not chunk.single, chunk.slot))
        return ScheduledStep(copies, chunks)

    def _admit(self, sequence: Sequence, copies: list[tuple]) -> None:
        """Gives the sequence the longest prefix that any slot has for it, and a free slot: the
        prefix's own if that gains more than it loses, else an empty one, else the one that was left
        longest ago. Where the prefix is still being computed, the sequence goes on waiting."""
        wanted = sequence.tokens[:-1]  # the last token's logits are needed
        lengths = {slot: len(commonprefix([slot.tokens, wanted])) for slot in self.slots}
        source = max(self.slots, key=lambda slot: (lengths[slot], slot.owner is None))
        length = lengths[source] if lengths[source] >= self.share else 0
        if source.owner is not None and source.owner.computed < length:
            if not source.owner.paused:
                return
            length = source.owner.computed
        free = [slot for slot in self.slots if slot.owner is None]
        kept = [slot for slot in free if slot.held]
        if length and source in free and 2 * length >= len(source.held):
            slot = source
        elif len(kept) < len(free) and (len(kept) < self.idle or not kept):
            slot = next(slot for slot in free if not slot.held)
        else:
            slot = min(kept, key=lambda slot: slot.released)  # may be the source: then no copy
        if length and slot is not source:
            copies.append((source.number, slot.number, length))
        self.reused_tokens += length
        sequence.slot, sequence.computed = slot.number, length
        slot.owner, slot.held = sequence, []
        self.waiting.remove(sequence)
        self.running.append(sequence)

    def _deal(self, reading: list[Sequence]) -> dict[int, int]:
        """Deals the budget to sequences with several tokens to read: half to the first that came,
        so that each gets through; the rest to the shortest, so that they are soon done."""
        takes, budget = dict.fromkeys((s.id for s in reading), 0), self.chunk
        shares = [(s, (budget + 1) // 2) for s in reading[:1]]
        shares += [(s, budget) for s in sorted(reading, key=lambda s: s.missing)]
        for sequence, most in shares:
            take = min(most, budget, sequence.missing - takes[sequence.id])
            takes[sequence.id] += take
            budget -= take
        return takes
