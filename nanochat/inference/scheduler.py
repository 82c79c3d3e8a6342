"""Says what the next step computes: sequences, slots, reused prefixes, chunks. Touches no tensor.

A sequence is one request's tokens, prompt first; a slot is its place in the key/value cache. Its
tokens stay there until the slot is taken, and serve later sequences that begin with the same: in
place (a conversation's next turn), or as a copy (a system prompt that two share).
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple


class Copy(NamedTuple):
    """The first `length` tokens of slot `source` are needed in slot `target` too."""

    source: int
    target: int
    length: int


class Chunk(NamedTuple):
    """Tokens of a sequence to compute now, the first at position `start`; `last`: none is left, so
    the next one is sampled."""

    sequence: "Sequence"
    slot: int
    start: int
    tokens: list[int]
    last: bool

    @property
    def single(self) -> bool:
        return len(self.tokens) == 1


class ScheduledStep(NamedTuple):
    """First the copies, in order; then all chunks in one pass, single tokens first, by slot."""

    copies: list[Copy]
    chunks: list[Chunk]


@dataclass(eq=False)
class Sequence:
    """One request's tokens, of which the first `computed` are in slot `slot` of the cache."""

    id: int
    tokens: list[int]  # new ones are appended
    slot: int | None = None
    computed: int = 0
    paused: bool = False  # waits for a tool's result
    parent: "Sequence | None" = None  # an earlier one, whose prefix this sequence will copy
    shared: int = 0  # length of that prefix
    serial: int = 0  # when it got its slot

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


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many first tokens a and b share. Example: common_prefix([1, 2, 3], [1, 2, 4]) == 2."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # a[:low] == b[:low] always; slices compare at C's speed
        middle = 16 if low == 0 and high > 16 else (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Scheduler:
    """Keeps sequences and slots; `schedule` says what the next step computes and counts it as done.

    slots: sequences that run at once. chunk: tokens of prompts that one step may read, lest a long
    prompt stall the others. idle: free slots that keep their tokens before the oldest is taken
    again. share: the shortest prefix that is worth reusing.

    Example: after s.add(Sequence(7, [1, 2, 3])), s.schedule().chunks[0].tokens == [1, 2, 3]; then,
    after s.sequences[7].tokens.append(4), the next step computes [4].
    """

    def __init__(self, slots: int, chunk: int = 256, idle: int = 8, share: int = 16):
        self.chunk, self.idle, self.share = chunk, idle, share
        self.slots = [Slot(i) for i in range(slots)]
        self.sequences: dict[int, Sequence] = {}  # waiting and running ones
        self.waiting: deque[Sequence] = deque()
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
            sequence.computed, sequence.parent = 0, None

    def schedule(self) -> ScheduledStep:
        """What to compute now, counted as done: the newest token of every sequence that has got so
        far, and more of others' prompts, within the budget."""
        copies: list[Copy] = []
        while self.waiting and any(slot.owner is None for slot in self.slots):
            self._admit(self.waiting.popleft(), copies)
        # subtle: copies come before the pass, so this step's own tokens cannot be copied yet
        for sequence in [s for s in self.running if s.parent is not None]:
            parent = sequence.parent
            if parent.id not in self.sequences:  # it left: another may have the prefix
                sequence.parent = None
                self._reuse(sequence, *self._best_source(sequence), copies)
            elif parent.computed >= sequence.shared:
                sequence.parent = None
                self._copy(sequence, parent.slot, sequence.shared, copies)
        ready = [s for s in self.running if not s.paused and s.parent is None and s.missing]
        takes = {s.id: 1 for s in ready if s.missing == 1}
        takes |= self._deal([s for s in ready if s.missing > 1])
        chunks = []
        for sequence in ready:
            if take := takes[sequence.id]:
                start, end = sequence.computed, sequence.computed + take
                tokens, last = sequence.tokens[start:end], end == len(sequence.tokens)
                chunks.append(Chunk(sequence, sequence.slot, start, tokens, last))
                sequence.computed = end
                self.read_tokens += max(0, min(end, sequence.prompt_length) - start)
        chunks.sort(key=lambda chunk: (not chunk.single, chunk.slot))
        return ScheduledStep(copies, chunks)

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

    # ------------------------------------------------------------ slots and prefixes

    def _admit(self, sequence: Sequence, copies: list[Copy]) -> None:
        """Gives the sequence the longest prefix that any slot has for it, and a free slot: the
        prefix's own if that gains more than it loses, else an empty one, else the one that was left
        longest ago."""
        source, length = self._best_source(sequence)
        free = [slot for slot in self.slots if slot.owner is None]
        kept = [slot for slot in free if slot.held]
        if source in free and 2 * length >= len(source.held):
            slot = source
        elif len(kept) < len(free) and (len(kept) < self.idle or not kept):
            slot = next(slot for slot in free if not slot.held)
        else:
            slot = min(kept, key=lambda slot: slot.released)  # may be the source: then no copy
        sequence.serial, sequence.slot = next(self._clock), slot.number
        self._reuse(sequence, source, length, copies)
        slot.owner, slot.held = sequence, []
        self.running.append(sequence)

    def _best_source(self, sequence: Sequence) -> tuple[Slot | None, int]:
        """The slot whose tokens, or tokens to be, begin most like the sequence, and how many they
        share. Of equal ones, a free slot."""
        wanted = sequence.tokens[:-1]  # the last token's logits are needed
        lengths = [
            (slot, common_prefix(slot.held if slot.owner is None else slot.owner.tokens, wanted))
            for slot in self.slots
            # subtle: only earlier owners, else two sequences could wait for each other
            if slot.owner is None or not sequence.serial or slot.owner.serial < sequence.serial
        ]
        best = max(lengths, key=lambda pair: (pair[1], pair[0].owner is None), default=(None, 0))
        return best if best[1] >= self.share else (None, 0)

    def _reuse(
        self, sequence: Sequence, source: Slot | None, length: int, copies: list[Copy]
    ) -> None:
        """Takes a prefix from a free slot, or lets the sequence wait for a busy one's owner."""
        if source is not None and source.owner is not None:
            sequence.parent, sequence.shared = source.owner, length
        elif source is not None:
            self._copy(sequence, source.number, length, copies)

    def _copy(self, sequence: Sequence, source: int, length: int, copies: list[Copy]) -> None:
        if source != sequence.slot:
            copies.append(Copy(source, sequence.slot, length))
        sequence.computed = length
        self.reused_tokens += length
