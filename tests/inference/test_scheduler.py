"""The scheduler without a model: a cache of plain lists stands in, and checks every plan."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.inference.scheduler import Copy, Scheduler, Stream, common_prefix


class ListCache:
    """The tokens that each slot of a real cache would hold; refuses impossible plans."""

    def __init__(self, scheduler: Scheduler):
        self.scheduler = scheduler
        self.slots = [[] for _ in scheduler.slots]

    def run(self) -> list:
        """Carries out one plan; the streams that got to their last known token."""
        plan = self.scheduler.plan()
        running = {stream.slot for stream in self.scheduler.running}
        assert len(running) == len(self.scheduler.running), "two streams share a slot"
        for copy in plan.copies:
            assert copy.source != copy.target and len(self.slots[copy.source]) >= copy.length
            self.slots[copy.target] = self.slots[copy.source][: copy.length]
        assert len({chunk.slot for chunk in plan.chunks}) == len(plan.chunks)
        for chunk in plan.chunks:
            before, tokens = self.slots[chunk.slot][: chunk.start], chunk.stream.tokens
            assert chunk.slot == chunk.stream.slot and chunk.tokens
            assert before == tokens[: chunk.start], "the cache holds something else"
            self.slots[chunk.slot] = before + chunk.tokens
            assert tokens[chunk.start :][: len(chunk.tokens)] == chunk.tokens
            assert chunk.last == (chunk.stream.computed == len(tokens))
        read = [len(chunk.tokens) for chunk in plan.chunks if not chunk.single]
        assert sum(read) <= self.scheduler.chunk
        order = [(not chunk.single, chunk.slot) for chunk in plan.chunks]
        assert order == sorted(order)
        return [chunk.stream for chunk in plan.chunks if chunk.last]


def run_alone(scheduler: Scheduler, cache: ListCache, stream: Stream) -> int:
    """Steps until the stream's next token must be chosen; how many that were."""
    for steps in range(1, 100):
        if stream in cache.run():
            return steps
    raise AssertionError("never ready")


# ---------------------------------------------------------------- any order of events


prompts = st.builds(
    lambda shared, rest: list(range(shared)) + rest,
    st.integers(0, 12),
    st.lists(st.integers(0, 3), min_size=1, max_size=9),
)
actions = st.one_of(
    st.tuples(st.just("add"), prompts),
    st.tuples(st.just("step"), st.integers(0, 3)),  # the token that every ready stream gets
    st.tuples(st.just("leave"), st.integers(0, 9)),
    st.tuples(st.just("pause"), st.integers(0, 9)),
    st.tuples(st.just("forget"), st.none()),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(actions, max_size=60),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(0, 3),
    st.integers(1, 4),
)
def test_streams_that_join_and_leave_at_random(events, slots, chunk, idle, share):
    scheduler = Scheduler(slots, chunk, idle, share)
    cache = ListCache(scheduler)
    alive: list[Stream] = []
    for name, value in events:
        if name == "add":
            alive.append(Stream(len(scheduler.streams) + 1000 * len(events) + id(value), value))
            scheduler.add(alive[-1])
        elif name == "step":
            for stream in cache.run():
                scheduler.extend(stream.id, [value])
        elif name == "forget":
            scheduler.forget()
            cache.slots = [[-1] * 50 for _ in cache.slots]  # whatever it was, it is void
        elif alive and name == "leave":
            scheduler.remove(alive.pop(value % len(alive)).id)
        elif alive and name == "pause":
            stream = alive[value % len(alive)]
            stream.paused = not stream.paused
        assert set(scheduler.streams.values()) == set(alive)
        assert len(scheduler.running) + len(scheduler.waiting) == len(alive)
        assert not (scheduler.waiting and len(scheduler.running) < slots and name == "step")
    for stream in alive:
        stream.paused = False
    for _ in range(2000):  # none lost: each gets to its next token, whoever came before
        if not alive:
            break
        for stream in cache.run():
            alive.remove(stream)
            scheduler.remove(stream.id)
    assert not alive and not scheduler.running and not scheduler.waiting


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40))
def test_common_prefix_equals_its_slow_twin(a, b):
    slow = 0
    while slow < min(len(a), len(b)) and a[slow] == b[slow]:
        slow += 1
    assert common_prefix(a, b) == slow
    assert common_prefix(a, a + b) == len(a)
    assert common_prefix([7] * 100 + a, [7] * 100 + b) == 100 + slow


# ---------------------------------------------------------------- one rule each


def test_a_long_prompt_does_not_stall_the_others():
    scheduler = Scheduler(slots=4, chunk=8)
    cache = ListCache(scheduler)
    talking, long, short = Stream(0, [1, 2]), Stream(1, [5] * 40), Stream(2, [6, 7, 8])
    scheduler.add(talking)
    run_alone(scheduler, cache, talking)
    scheduler.add(long)
    scheduler.add(short)
    scheduler.extend(0, [3])
    sizes = []
    while not sizes or long.missing:
        plan = scheduler.plan()
        by_id = {chunk.stream.id: len(chunk.tokens) for chunk in plan.chunks}
        assert by_id[0] == 1, "who talks gets a token in every step"
        scheduler.extend(0, [3])
        sizes.append((by_id.get(1, 0), by_id.get(2, 0)))
    # half of the budget is the first comer's; the rest goes to the shortest, then to the first
    assert sizes == [(5, 3), (8, 0), (8, 0), (8, 0), (8, 0), (3, 0)]


def test_the_next_turn_reads_only_what_is_new():
    scheduler = Scheduler(slots=4, share=4)
    cache = ListCache(scheduler)
    first = Stream(0, list(range(10)))
    scheduler.add(first)
    run_alone(scheduler, cache, first)
    scheduler.extend(0, [90])
    assert cache.run() == [first]
    scheduler.remove(0)
    scheduler.add(Stream(1, [*range(10), 90, 91, 92]))
    plan = scheduler.plan()
    assert not plan.copies and plan.chunks[0].slot == first.slot
    assert plan.chunks[0].start == 11 and plan.chunks[0].tokens == [91, 92]
    assert scheduler.reused_tokens == 11 and scheduler.read_tokens == 12


def test_a_prompt_asked_again_computes_its_last_token_for_the_logits():
    scheduler = Scheduler(slots=1, share=4)
    cache = ListCache(scheduler)
    for i in range(2):
        scheduler.add(Stream(i, list(range(10))))
        plan = scheduler.plan() if i else None
        if plan is None:
            cache.run()
            scheduler.remove(0)
    assert [(chunk.start, chunk.tokens) for chunk in plan.chunks] == [(9, [9])]


def test_a_shared_system_prompt_is_computed_once_and_copied():
    system = list(range(100, 120))
    scheduler = Scheduler(slots=4, chunk=12)
    cache = ListCache(scheduler)
    for i in range(3):
        scheduler.add(Stream(i, system + [i, i]))
    ready: list[Stream] = []
    while len(ready) < 3:
        ready += cache.run()
    assert scheduler.read_tokens == 20 + 3 * 2 and scheduler.reused_tokens == 2 * 20
    assert [slot[:20] for slot in cache.slots[:3]] == [system] * 3


def test_who_waits_for_a_prefix_takes_it_from_elsewhere_when_its_computer_leaves():
    system = list(range(100, 120))
    scheduler = Scheduler(slots=4, chunk=10, share=4)
    cache = ListCache(scheduler)
    streams = [Stream(i, system + [i, i]) for i in range(3)]
    for stream in streams:
        scheduler.add(stream)
    cache.run()
    scheduler.remove(0)  # it has computed 10 of the 20
    assert cache.run() == [] and streams[1].computed == 20 and streams[2].computed == 0
    run_alone(scheduler, cache, streams[2])
    assert streams[1].missing == 0 and scheduler.read_tokens == 20 + 2 * 2


def test_a_conversation_is_kept_when_another_shares_only_its_beginning():
    system, talk = list(range(20)), list(range(200, 260))
    scheduler = Scheduler(slots=3)
    cache = ListCache(scheduler)
    scheduler.add(Stream(0, system + talk))
    run_alone(scheduler, cache, scheduler.streams[0])
    scheduler.remove(0)
    scheduler.add(Stream(1, system + [7]))
    assert scheduler.plan().copies == [Copy(0, 1, 20)]
    assert scheduler.slots[0].held == system + talk


@pytest.mark.parametrize("idle, expected", [(2, [0, 1, 0, 1, 0]), (0, [0, 0, 0, 0, 0])])
def test_idle_slots_are_kept_and_then_taken_in_the_order_in_which_they_were_left(idle, expected):
    scheduler = Scheduler(slots=9, idle=idle)
    cache = ListCache(scheduler)
    taken = []
    for i in range(5):
        stream = Stream(i, [i] * 20)
        scheduler.add(stream)
        run_alone(scheduler, cache, stream)
        taken.append(stream.slot)
        scheduler.remove(i)
    assert taken == expected


def test_a_slot_is_free_for_the_step_after_its_stream_left():
    scheduler = Scheduler(slots=1)
    scheduler.add(Stream(0, [1, 2, 3]))
    scheduler.add(Stream(1, [4, 5]))
    assert [chunk.stream.id for chunk in scheduler.plan().chunks] == [0]
    scheduler.remove(0)
    assert [chunk.stream.id for chunk in scheduler.plan().chunks] == [1]


def test_a_waiting_stream_can_leave():
    scheduler = Scheduler(slots=1)
    for i in range(3):
        scheduler.add(Stream(i, [i]))
    scheduler.plan()
    scheduler.remove(1)
    scheduler.remove(0)
    assert [chunk.stream.id for chunk in scheduler.plan().chunks] == [2]
