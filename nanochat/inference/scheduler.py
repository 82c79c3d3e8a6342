"""Who computes what in the next step: streams, slots, reused prefixes, chunks. Touches no tensor.

A stream is one request's tokens, prompt first; a slot is its place in the key/value cache. Streams
join when a slot is free and leave at any time. What a stream leaves in its slot stays there until
the slot is taken, and serves later streams that begin with the same tokens: in place where the slot
is free (a conversation's next turn), as a copy where it is not (a system prompt that two share).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Copy(NamedTuple):
    """The first `length` tokens of slot `source` are needed in slot `target` too."""

    source: int
    target: int
    length: int


class Chunk(NamedTuple):
    """Tokens of a stream to compute now, the first at position `start`; `last`: then no known token
    is left, so that the next one must be chosen."""

    stream: "Stream"
    slot: int
    start: int
    tokens: list[int]
    last: bool

    @property
    def single(self) -> bool:
        return len(self.tokens) == 1


class Plan(NamedTuple):
    """One step: first the copies, in order, then all chunks in one pass, single tokens first, by
    slot."""

    copies: list[Copy]
    chunks: list[Chunk]


@dataclass(eq=False)
class Stream:
    """One request's tokens, of which the first `computed` are in slot `slot` of the cache."""

    id: int
    tokens: list[int]
    slot: int | None = None
    computed: int = 0
    paused: bool = False  # it waits for something outside, say a tool's result
    parent: "Stream | None" = None  # an earlier one, whose prefix this stream will copy
    shared: int = 0  # length of that prefix
    serial: int = 0  # when it got its slot
    prompt_length: int = 0

    def __post_init__(self):
        self.prompt_length = len(self.tokens)

    @property
    def missing(self) -> int:
        """Known tokens that are still to be computed."""
        return len(self.tokens) - self.computed


@dataclass(eq=False)
class Slot:
    """A place in the cache; `held` are the tokens in it while no stream owns it."""

    number: int
    owner: Stream | None = None
    held: list[int] = field(default_factory=list)
    released: int = 0  # when its last owner left


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens a and b have in common at their start.

    Example: common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    """
    low, high = 0, min(len(a), len(b))
    while low < high:  # a[:low] == b[:low] always; slices compare at C's speed
        middle = 16 if low == 0 and high > 16 else (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Scheduler:
    """Keeps streams and slots; `plan` says what the next step computes and counts it as done.

    slots: streams that run at once. chunk: tokens of prompts that one step may read, so that a long
    prompt does not stall the others. idle: slots without a stream that keep their tokens before the
    oldest is taken again. share: the shortest prefix that is worth reusing.

    Example: s = Scheduler(slots=2); s.add(Stream(7, [1, 2, 3])); s.plan().chunks[0].tokens ==
    [1, 2, 3]; then s.extend(7, [4]), and the next plan computes [4].
    """

    def __init__(self, slots: int, chunk: int = 256, idle: int = 8, share: int = 16):
        assert slots >= 1 and chunk >= 1 and idle >= 0 and share >= 1
        self.chunk, self.idle, self.share = chunk, idle, share
        self.slots = [Slot(i) for i in range(slots)]
        self.streams: dict[int, Stream] = {}  # waiting and running ones
        self.waiting: deque[Stream] = deque()
        self.running: list[Stream] = []  # in the order in which they got their slots
        self.read_tokens = self.reused_tokens = 0  # of prompts, in all
        self._clock = 0

    def grow(self, slots: int) -> None:
        """Makes sure that at least so many streams can run at once."""
        self.slots += [Slot(i) for i in range(len(self.slots), slots)]

    def add(self, stream: Stream) -> None:
        """Puts a stream in line; it runs when a slot is free."""
        assert stream.tokens and stream.id not in self.streams
        self.streams[stream.id] = stream
        self.waiting.append(stream)

    def extend(self, id: int, tokens: Sequence[int]) -> None:
        """Tokens that were chosen, or are forced: the next steps compute them."""
        self.streams[id].tokens += tokens

    def remove(self, id: int) -> None:
        """A stream leaves: its slot is free at once, and keeps what was computed."""
        stream = self.streams.pop(id)
        if stream.slot is None:
            self.waiting.remove(stream)
            return
        self.running.remove(stream)
        slot = self.slots[stream.slot]
        self._clock += 1
        slot.owner, slot.held = None, stream.tokens[: stream.computed]
        slot.released = self._clock

    def forget(self) -> None:
        """The cache's contents are void (new weights, a step that broke off): running streams
        compute their tokens anew."""
        for slot in self.slots:
            slot.held = []
        for stream in self.running:
            stream.computed, stream.parent = 0, None

    def plan(self) -> Plan:
        """What to compute now, counted as done: the one newest token of every stream that has got
        so far, and more of the prompts of others, within the budget."""
        copies: list[Copy] = []
        while self.waiting and any(slot.owner is None for slot in self.slots):
            self._admit(self.waiting.popleft(), copies)
        # subtle: copies come before the pass, so this step's own tokens cannot be copied yet
        for stream in self.running:
            if stream.parent is not None:
                self._inherit(stream, copies)
        ready = [s for s in self.running if not s.paused and s.parent is None and s.missing]
        reading = [s for s in ready if s.missing > 1]
        takes = {s.id: 1 for s in ready if s.missing == 1} | self._deal(reading)
        chunks = []
        for stream in ready:
            if take := takes.get(stream.id, 0):
                start, end = stream.computed, stream.computed + take
                last = end == len(stream.tokens)
                chunks.append(Chunk(stream, stream.slot, start, stream.tokens[start:end], last))
                stream.computed = end
                self.read_tokens += max(0, min(end, stream.prompt_length) - start)
        chunks.sort(key=lambda chunk: (not chunk.single, chunk.slot))
        return Plan(copies, chunks)

    def _deal(self, reading: list[Stream]) -> dict[int, int]:
        """Deals the budget to streams with several tokens to read: half to the one that came first,
        so that each gets through; the rest to the shortest, so that they are soon done."""
        takes, budget = dict.fromkeys((s.id for s in reading), 0), self.chunk
        ways = [(s, (budget + 1) // 2) for s in reading[:1]]
        ways += [(s, budget) for s in sorted(reading, key=lambda s: s.missing)]
        for stream, most in ways:
            take = min(most, budget, stream.missing - takes[stream.id])
            takes[stream.id] += take
            budget -= take
        return takes

    # ------------------------------------------------------------ slots and prefixes

    def _admit(self, stream: Stream, copies: list[Copy]) -> None:
        """Gives the stream a free slot, and the longest prefix that any slot has for it."""
        source, length = self._best_source(stream)
        slot = self._take_slot(source, length)
        self._clock += 1
        stream.serial, stream.slot = self._clock, slot.number
        if slot is source:
            self._reuse(stream, length)
        elif source is not None:
            self._follow(stream, source, length, copies)
        slot.owner, slot.held = stream, []
        self.running.append(stream)

    def _best_source(self, stream: Stream) -> tuple[Slot | None, int]:
        """The slot whose tokens, or tokens to be, begin most like the stream, and how many they
        share; without the last token, whose logits are needed. Of equal ones, a free slot."""
        wanted = stream.tokens[:-1]
        best, longest = None, self.share - 1
        for slot in self.slots:
            owner = slot.owner
            # subtle: only earlier owners, else two streams could wait for each other
            if owner is not None and stream.serial and owner.serial >= stream.serial:
                continue
            length = common_prefix(slot.held if owner is None else owner.tokens, wanted)
            free_instead = best is not None and best.owner is not None and owner is None
            if length > longest or (length == longest and free_instead):
                best, longest = slot, length
        return best, longest

    def _take_slot(self, source: Slot | None, length: int) -> Slot:
        """A free slot: the source itself if less is lost by that than gained, else an empty one,
        else the one that was left longest ago."""
        if source is not None and source.owner is None and 2 * length >= len(source.held):
            return source
        free = [slot for slot in self.slots if slot.owner is None]
        kept = [slot for slot in free if slot.held]
        if len(kept) < len(free) and (len(kept) < self.idle or not kept):
            return next(slot for slot in free if not slot.held)
        return min(kept, key=lambda slot: slot.released)  # may be the source: then no copy

    def _follow(self, stream: Stream, source: Slot, length: int, copies: list[Copy]) -> None:
        """Copies a prefix from a free slot, or lets the stream wait for the owner of a busy one."""
        if source.owner is not None:
            stream.parent, stream.shared = source.owner, length
        else:
            copies.append(Copy(source.number, stream.slot, length))
            self._reuse(stream, length)

    def _inherit(self, stream: Stream, copies: list[Copy]) -> None:
        """Copies the prefix that the parent was to compute, if it is there; seeks another source if
        the parent left."""
        parent = stream.parent
        if self.streams.get(parent.id) is not parent:
            stream.parent = None
            source, length = self._best_source(stream)
            if source is not None:
                self._follow(stream, source, length, copies)
        elif parent.computed >= stream.shared:
            copies.append(Copy(parent.slot, stream.slot, stream.shared))
            self._reuse(stream, stream.shared)
            stream.parent = None

    def _reuse(self, stream: Stream, length: int) -> None:
        stream.computed = length
        self.reused_tokens += length
