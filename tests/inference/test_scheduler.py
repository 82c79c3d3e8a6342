"""The scheduler without a model: a cache of plain lists stands in, and checks every step."""

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.inference.scheduler import Scheduler, Sequence


class ListCache:
    """The tokens that each slot of a real cache would hold; refuses impossible steps."""

    def __init__(self, scheduler: Scheduler):
        self.scheduler = scheduler
        self.slots = [[] for _ in scheduler.slots]

    def run(self) -> list:
        """Carries out one step; the sequences that got to their last known token."""
        step = self.scheduler.schedule()
        running = {sequence.slot for sequence in self.scheduler.running}
        assert len(running) == len(self.scheduler.running), "two sequences share a slot"
        for source, target, length in step.copies:
            assert source != target and len(self.slots[source]) >= length
            self.slots[target] = self.slots[source][:length]
        assert len({chunk.slot for chunk in step.chunks}) == len(step.chunks)
        for chunk in step.chunks:
            before, tokens = self.slots[chunk.slot][: chunk.start], chunk.sequence.tokens
            assert chunk.slot == chunk.sequence.slot and chunk.tokens
            assert before == tokens[: chunk.start], "the cache holds something else"
            self.slots[chunk.slot] = before + chunk.tokens
            assert tokens[chunk.start :][: len(chunk.tokens)] == chunk.tokens
            assert chunk.last == (chunk.sequence.computed == len(tokens))
        read = [len(chunk.tokens) for chunk in step.chunks if not chunk.single]
        assert sum(read) <= self.scheduler.chunk
        order = [(not chunk.single, chunk.slot) for chunk in step.chunks]
        assert order == sorted(order)
        return [chunk.sequence for chunk in step.chunks if chunk.last]


def run_alone(scheduler: Scheduler, cache: ListCache, sequence: Sequence) -> int:
    """Steps until the sequence's next token must be chosen; how many that were."""
    for steps in range(1, 100):
        if sequence in cache.run():
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
    st.tuples(st.just("step"), st.integers(0, 3)),  # the token that every ready sequence gets
    st.tuples(st.just("leave"), st.integers(0, 9)),
    st.tuples(st.just("pause"), st.integers(0, 9)),
    st.tuples(st.just("forget"), st.none()),
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(actions, max_size=60),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(0, 3),
    st.integers(1, 4),
)
def test_sequences_that_join_and_leave_at_random(events, slots, chunk, idle, share):
    scheduler = Scheduler(slots, chunk)
    scheduler.idle, scheduler.share = idle, share
    cache = ListCache(scheduler)
    alive: list[Sequence] = []
    ids = count()
    for name, value in events:
        if name == "add":
            alive.append(Sequence(next(ids), value))
            scheduler.add(alive[-1])
        elif name == "step":
            for sequence in cache.run():
                sequence.tokens.append(value)
        elif name == "forget":
            scheduler.forget()
            cache.slots = [[-1] * 50 for _ in cache.slots]  # whatever it was, it is void
        elif alive and name == "leave":
            scheduler.remove(alive.pop(value % len(alive)).id)
        elif alive and name == "pause":
            sequence = alive[value % len(alive)]
            sequence.paused = not sequence.paused
        assert set(scheduler.sequences.values()) == set(alive)
        assert len(scheduler.running) + len(scheduler.waiting) == len(alive)
        if name == "step" and scheduler.waiting and len(scheduler.running) < slots:
            assert any(s.missing and not s.paused for s in scheduler.running)  # its prefix comes
    for sequence in alive:
        sequence.paused = False
    for _ in range(2000):  # none lost: each gets to its next token, whoever came before
        if not alive:
            break
        for sequence in cache.run():
            alive.remove(sequence)
            scheduler.remove(sequence.id)
    assert not alive and not scheduler.running and not scheduler.waiting


# ---------------------------------------------------------------- one rule each


def test_a_long_prompt_does_not_stall_the_others():
    scheduler = Scheduler(slots=4, chunk=8)
    cache = ListCache(scheduler)
    talking, long, short = Sequence(0, [1, 2]), Sequence(1, [5] * 40), Sequence(2, [6, 7, 8])
    scheduler.add(talking)
    run_alone(scheduler, cache, talking)
    scheduler.add(long)
    scheduler.add(short)
    talking.tokens.append(3)
    sizes = []
    while not sizes or long.missing:
        step = scheduler.schedule()
        by_id = {chunk.sequence.id: len(chunk.tokens) for chunk in step.chunks}
        assert by_id[0] == 1, "who talks gets a token in every step"
        talking.tokens.append(3)
        sizes.append((by_id.get(1, 0), by_id.get(2, 0)))
    # half of the budget is the first comer's; the rest goes to the shortest, then to the first
    assert sizes == [(5, 3), (8, 0), (8, 0), (8, 0), (8, 0), (3, 0)]


def test_the_next_turn_reads_only_what_is_new():
    scheduler = Scheduler(slots=4)
    scheduler.share = 4
    cache = ListCache(scheduler)
    first = Sequence(0, list(range(10)))
    scheduler.add(first)
    run_alone(scheduler, cache, first)
    first.tokens.append(90)
    assert cache.run() == [first]
    scheduler.remove(0)
    scheduler.add(Sequence(1, [*range(10), 90, 91, 92]))
    step = scheduler.schedule()
    assert not step.copies and step.chunks[0].slot == first.slot
    assert step.chunks[0].start == 11 and step.chunks[0].tokens == [91, 92]
    assert scheduler.reused_tokens == 11 and scheduler.read_tokens == 12


def test_a_prompt_asked_again_computes_its_last_token_for_the_logits():
    scheduler = Scheduler(slots=1)
    scheduler.share = 4
    cache = ListCache(scheduler)
    for i in range(2):
        scheduler.add(Sequence(i, list(range(10))))
        step = scheduler.schedule() if i else None
        if step is None:
            cache.run()
            scheduler.remove(0)
    assert [(chunk.start, chunk.tokens) for chunk in step.chunks] == [(9, [9])]


def test_a_shared_system_prompt_is_computed_once_and_copied():
    system = list(range(100, 120))
    scheduler = Scheduler(slots=4, chunk=12)
    cache = ListCache(scheduler)
    for i in range(3):
        scheduler.add(Sequence(i, system + [i, i]))
    ready: list[Sequence] = []
    while len(ready) < 3:
        ready += cache.run()
    assert scheduler.read_tokens == 20 + 3 * 2 and scheduler.reused_tokens == 2 * 20
    assert [slot[:20] for slot in cache.slots[:3]] == [system] * 3


def test_who_waits_for_a_prefix_takes_it_from_elsewhere_when_its_computer_leaves():
    system = list(range(100, 120))
    scheduler = Scheduler(slots=4, chunk=10)
    scheduler.share = 4
    cache = ListCache(scheduler)
    sequences = [Sequence(i, system + [i, i]) for i in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    cache.run()
    scheduler.remove(0)  # it has computed 10 of the 20
    assert cache.run() == [] and sequences[1].computed == 20 and sequences[2].computed == 0
    run_alone(scheduler, cache, sequences[2])
    assert sequences[1].missing == 0 and scheduler.read_tokens == 20 + 2 * 2


def test_a_conversation_is_kept_when_another_shares_only_its_beginning():
    system, talk = list(range(20)), list(range(200, 260))
    scheduler = Scheduler(slots=3)
    cache = ListCache(scheduler)
    scheduler.add(Sequence(0, system + talk))
    run_alone(scheduler, cache, scheduler.sequences[0])
    scheduler.remove(0)
    scheduler.add(Sequence(1, system + [7]))
    assert scheduler.schedule().copies == [(0, 1, 20)]
    assert scheduler.slots[0].held == system + talk


@pytest.mark.parametrize("idle, expected", [(2, [0, 1, 0, 1, 0]), (0, [0, 0, 0, 0, 0])])
def test_idle_slots_are_kept_and_then_taken_in_the_order_in_which_they_were_left(idle, expected):
    scheduler = Scheduler(slots=9)
    scheduler.idle = idle
    cache = ListCache(scheduler)
    taken = []
    for i in range(5):
        sequence = Sequence(i, [i] * 20)
        scheduler.add(sequence)
        run_alone(scheduler, cache, sequence)
        taken.append(sequence.slot)
        scheduler.remove(i)
    assert taken == expected


def test_a_slot_is_free_for_the_step_after_its_sequence_left():
    scheduler = Scheduler(slots=1)
    scheduler.add(Sequence(0, [1, 2, 3]))
    scheduler.add(Sequence(1, [4, 5]))
    assert [chunk.sequence.id for chunk in scheduler.schedule().chunks] == [0]
    scheduler.remove(0)
    assert [chunk.sequence.id for chunk in scheduler.schedule().chunks] == [1]


def test_a_waiting_sequence_can_leave():
    scheduler = Scheduler(slots=1)
    for i in range(3):
        scheduler.add(Sequence(i, [i]))
    scheduler.schedule()
    scheduler.remove(1)
    scheduler.remove(0)
    assert [chunk.sequence.id for chunk in scheduler.schedule().chunks] == [2]
