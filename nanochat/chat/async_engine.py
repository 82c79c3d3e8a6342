"""The engine in a thread of its own, and streams that carry its events to asyncio.

Only that thread uses the engine. Commands reach it through a queue that is emptied before every
step, so a client that leaves frees its slot within one step.
"""

import asyncio
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

from nanochat.common import NanochatError
from nanochat.engine import Engine, Request, TokenOutput

STATS_EVERY = 0.25  # seconds


class QueueFull(NanochatError):
    """Too many answers run and wait; try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int):
        super().__init__(message)
        self.retry_after = retry_after


class EngineStopped(NanochatError):
    """The engine was stopped, or failed, before the answer was complete."""


class EventStream:
    """The events of some requests as they come: `async for sample, event in stream`.

    Ends after the last event of every request. Who stops reading earlier must call `close`.
    """

    def __init__(self, engine: "AsyncEngine", num_requests: int):
        self.submitted = time.monotonic()
        self.unfinished = set(range(num_requests))
        self.unstarted = set(range(num_requests))
        self._engine = engine
        self._queue: asyncio.Queue = asyncio.Queue()
        self._unread = num_requests

    def __aiter__(self):
        return self

    async def __anext__(self) -> tuple[int, TokenOutput]:
        if not self._unread:
            raise StopAsyncIteration
        item = await self._queue.get()
        if isinstance(item, Exception):
            self._unread = 0
            raise item
        self._unread -= item[1].finish is not None
        return item

    def put(self, item: tuple[int, TokenOutput] | Exception) -> None:
        self._queue.put_nowait(item)

    def close(self, error: Exception | None = None) -> None:
        """Cancels what is unfinished; the reader then gets `error`, if there is one."""
        if self.unfinished:
            self.unfinished.clear()
            self._engine.cancel(self)
            if error is not None:
                self.put(error)


class AsyncEngine:
    """Runs `engine` for an event loop, to which its public methods belong.

    Attributes: stats, the newest Engine.stats(); failure, the error that ended the thread.

    Example: engine.start(); async for sample, event in engine.submit([request]): ...
    """

    def __init__(self, engine: Engine, max_in_flight: int = 256):
        self.engine, self.max_in_flight = engine, max_in_flight
        self.stats: dict = engine.stats()
        self.failure: Exception | None = None
        self._first_tokens: deque[float] = deque(maxlen=100)  # seconds, of the last answers
        self._durations: deque[float] = deque(maxlen=100)
        self._streams: set[EventStream] = set()  # those with unfinished requests
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._requests: dict[int, tuple[EventStream, int]] = {}  # by id; the thread's own
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # ------------------------------------------------------------ the event loop's side

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread after its current step; unfinished streams raise EngineStopped."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)

    def submit(self, requests: Sequence[Request]) -> EventStream:
        """Starts the requests; raises QueueFull, EngineStopped, or ConfigError for an impossible
        one."""
        if self.failure is not None:
            raise EngineStopped("the engine has stopped; restart the server")
        config = self.engine.model.config
        for request in requests:
            request.check(config.sequence_len, config.vocab_size)
        if self.in_flight + len(requests) > self.max_in_flight:
            raise QueueFull(
                f"{self.in_flight} answers are running or waiting, and {len(requests)} more would "
                f"exceed the server's {self.max_in_flight}. Try again in {self.retry_after} s",
                self.retry_after,
            )
        stream = EventStream(self, len(requests))
        self._streams.add(stream)
        self._commands.put(partial(self._add, stream, requests))
        return stream

    def cancel(self, stream: EventStream) -> None:
        self._streams.discard(stream)
        self._commands.put(partial(self._cancel, stream))

    @property
    def in_flight(self) -> int:
        """Answers that run or wait."""
        return sum(len(stream.unfinished) for stream in self._streams)

    @property
    def retry_after(self) -> int:
        """Seconds until a place is likely to be free: the median time of an answer, 1 to 60."""
        return int(min(60, max(1, median(self._durations or [1]) + 0.5)))

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from submit to the first token: the median of the last 100 answers."""
        return median(self._first_tokens) if self._first_tokens else None

    def _deliver(self, events: list[tuple[EventStream, int, TokenOutput]]) -> None:
        now = time.monotonic()
        for stream, sample, event in events:
            if sample not in stream.unfinished:
                continue  # its client left
            stream.put((sample, event))
            if event.token is not None and sample in stream.unstarted:
                stream.unstarted.discard(sample)
                self._first_tokens.append(now - stream.submitted)
            if event.finish is not None:
                stream.unfinished.discard(sample)
                self._durations.append(now - stream.submitted)
                if not stream.unfinished:
                    self._streams.discard(stream)

    def _fail(self, failure: Exception, error: EngineStopped) -> None:
        self.failure = failure
        for stream in list(self._streams):
            stream.close(error)

    # ------------------------------------------------------------ the engine's thread

    def _run(self) -> None:
        failure = error = EngineStopped("the server was shut down before the answer was complete")
        stats_time = 0.0
        try:
            while not self._loop.is_closed():
                try:
                    command = self._commands.get(block=not self.engine.has_work, timeout=1.0)
                except queue.Empty:
                    events = self.engine.step() if self.engine.has_work else []
                    if time.monotonic() - stats_time > STATS_EVERY or not self.engine.has_work:
                        stats_time, self.stats = time.monotonic(), self.engine.stats()
                    known = [(*self._requests[e.id], e) for e in events if e.id in self._requests]
                    for event in events:
                        if event.finish is not None:
                            self._requests.pop(event.id, None)
                    self._loop.call_soon_threadsafe(self._deliver, known)
                    continue
                if command is None:
                    break
                command()
        except Exception as problem:  # whatever it was, nobody may wait forever
            # subtle: frames and type only, because a message may quote what somebody wrote
            print("".join(traceback.format_tb(problem.__traceback__)), type(problem), flush=True)
            failure, error = problem, EngineStopped(f"the engine failed ({type(problem).__name__})")
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._fail, failure, error)

    def _add(self, stream: EventStream, requests: Sequence[Request]) -> None:
        for sample, request in enumerate(requests):
            self._requests[self.engine.add(request)] = stream, sample

    def _cancel(self, stream: EventStream) -> None:
        for id in [id for id, (owner, _) in self._requests.items() if owner is stream]:
            del self._requests[id]
            self.engine.cancel(id)
