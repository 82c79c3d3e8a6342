"""The engine in a thread of its own, and streams of its events for asyncio.

Commands reach the thread through a queue that is emptied before every step, so that a client that
leaves frees its slot within one.
"""

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from statistics import median

from nanochat.chat.access import APIError, without_message
from nanochat.engine import Engine, Request, TokenOutput


class EventStream:
    """The events of some requests: `async for sample, event in stream`; TimeoutError after
    `seconds`. Whoever stops reading before the last must call `close`."""

    def __init__(self, engine: "AsyncEngine", num_requests: int, seconds: float):
        self.unfinished = set(range(num_requests))
        self.items: asyncio.Queue = asyncio.Queue()  # of (sample, event), or an APIError
        self._engine = engine
        self._deadline = asyncio.get_running_loop().time() + seconds

    async def __aiter__(self) -> AsyncIterator[tuple[int, TokenOutput]]:
        while self.unfinished or not self.items.empty():
            async with asyncio.timeout_at(self._deadline):
                item = await self.items.get()
            if isinstance(item, APIError):
                raise item
            yield item

    def close(self, error: APIError | None = None) -> None:
        """Cancels what is unfinished, for which a reader gets `error`."""
        if self.unfinished:
            self.unfinished.clear()
            self._engine.cancel(self)
            self.items.put_nowait(error or APIError(499, "the client left"))


class AsyncEngine:
    """Runs `engine` for an event loop, to which its public methods belong.

    failure: why the thread ended. durations: of the last answers, in seconds.
    """

    def __init__(self, engine: Engine, max_in_flight: int):
        self.engine, self.max_in_flight = engine, max_in_flight
        self.failure: str | None = None
        self.durations: deque[float] = deque([1.0], maxlen=100)
        self._streams: set[EventStream] = set()  # those with unfinished requests
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._requests: dict[int, tuple[EventStream, int]] = {}  # by id; the thread's own
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread after its current step, and unfinished streams with an APIError."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)

    def submit(self, requests: Sequence[Request], seconds: float) -> EventStream:
        """Starts the requests; raises APIError if they cannot run now, ConfigError if never."""
        if self.failure is not None:
            raise APIError(503, "the engine has stopped; restart the server", "engine_stopped")
        for request in requests:
            request.check(self.engine.model.config)
        if self.in_flight + len(requests) > self.max_in_flight:
            message = (
                f"{self.in_flight} answers of at most {self.max_in_flight} are running or waiting; "
                f"try again in {self.retry_after} s"
            )
            raise APIError(429, message, "queue_full", {"retry-after": str(self.retry_after)})
        stream = EventStream(self, len(requests), seconds)
        self._streams.add(stream)

        def add() -> None:  # in the engine's thread
            for sample, request in enumerate(requests):
                self._requests[self.engine.add(request)] = stream, sample

        self._commands.put(add)
        return stream

    def cancel(self, stream: EventStream) -> None:
        self._streams.discard(stream)

        def cancel() -> None:  # in the engine's thread
            for id in [id for id, (owner, _) in self._requests.items() if owner is stream]:
                del self._requests[id]
                self.engine.cancel(id)

        self._commands.put(cancel)

    @property
    def in_flight(self) -> int:
        """Answers that run or wait."""
        return sum(len(stream.unfinished) for stream in self._streams)

    @property
    def retry_after(self) -> int:
        """Seconds until a place is likely to be free, 1 to 60."""
        return int(min(60, max(1, median(self.durations) + 0.5)))

    def _deliver(self, events: list[tuple[EventStream, int, TokenOutput]]) -> None:
        for stream, sample, event in events:
            if sample in stream.unfinished:  # else its client left
                stream.items.put_nowait((sample, event))
                if event.finish is not None:
                    stream.unfinished.discard(sample)
            if not stream.unfinished:
                self._streams.discard(stream)

    def _fail(self, failure: str) -> None:
        self.failure = failure
        for stream in list(self._streams):
            stream.close(APIError(503, failure, "engine_stopped"))

    def _run(self) -> None:
        """The engine's thread."""
        failure = "the server was shut down before the answer was complete"
        try:
            while not self._loop.is_closed():
                with contextlib.suppress(queue.Empty):
                    command = self._commands.get(block=not self.engine.has_work, timeout=1.0)
                    if command is None:
                        break
                    command()
                    continue
                events = self.engine.step()
                known = [(*self._requests[e.id], e) for e in events if e.id in self._requests]
                for event in events:
                    if event.finish:
                        self._requests.pop(event.id, None)
                self._loop.call_soon_threadsafe(self._deliver, known)
        except Exception as problem:  # whatever it was, nobody may wait forever
            print(without_message(problem), flush=True)
            failure = f"the engine failed ({type(problem).__name__})"
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._fail, failure)
