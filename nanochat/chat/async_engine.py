"""The thread that steps the engine, and the streams that hand its events to asyncio.

The engine is used by this thread alone. Requests and farewells reach it through a queue that is
emptied before every step, so a client that leaves frees its slot within one step. What a step
made crosses to the event loop in one call.
"""

import asyncio
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from statistics import median

from nanochat.common import ConfigError, NanochatError
from nanochat.engine import Engine, Request, TokenOutput


class QueueFull(NanochatError):
    """More answers were asked for than may run and wait at once; come back after `retry_after`
    seconds."""

    def __init__(self, message: str, retry_after: int):
        super().__init__(message)
        self.retry_after = retry_after


class EngineStopped(NanochatError):
    """The engine ended, or failed, before the answer was done."""


class EventStream:
    """The events of one call's samples as they come: `async for sample, event in stream`.

    Made by AsyncEngine.submit. It ends when every sample has had its last event. `close` may be
    called at any time, and must be when the client has left: what is unfinished is cancelled.
    """

    def __init__(self, thread: "AsyncEngine", requests: Sequence[Request]):
        self.requests = list(requests)
        self.ids: list[int] = []  # the engine's names for the samples; the engine's thread only
        self.open = set(range(len(self.requests)))  # samples whose last event has not come
        self.submitted = time.monotonic()
        self.accepted: asyncio.Future = asyncio.get_running_loop().create_future()
        self._thread = thread
        self._queue: asyncio.Queue = asyncio.Queue()
        self._unread = len(self.requests)

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

    def interrupt(self, error: Exception) -> None:
        """Gives up what is unfinished; the reader gets `error` after what already came."""
        if self.open:
            self.close()
            self.put(error)

    def close(self) -> None:
        """Gives up what is unfinished; its slots are free before the next step."""
        if self.open:
            self._thread.forget(self)


class AsyncEngine:
    """Runs `engine` in a thread of its own, for an event loop.

    in_flight: answers that run or wait, at most `max_in_flight`; stats: what the engine last said
    of itself; failure: what ended it. `submit` and everything public belongs to the event loop.

    Example: thread.start(); stream = thread.submit([request]); await stream.accepted
    """

    def __init__(self, engine: Engine, max_in_flight: int = 256):
        self.engine, self.max_in_flight = engine, max_in_flight
        self.in_flight = 0
        self.stats: dict = engine.stats()
        self.failure: Exception | None = None
        self._first_tokens: deque[float] = deque(maxlen=100)  # seconds, of the last answers
        self._durations: deque[float] = deque(maxlen=100)
        self._commands: queue.SimpleQueue = queue.SimpleQueue()
        self._streams: dict[int, tuple[EventStream, int]] = {}  # the engine's thread only
        self._told = 0.0  # when the engine was last asked for its stats; the engine's thread only
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # ------------------------------------------------------------ the event loop's side

    def start(self) -> None:
        """Starts the thread; events go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread after the step it is in; whoever still waits gets EngineStopped."""
        self._commands.put(("stop", None))
        await asyncio.to_thread(self._thread.join)

    def submit(self, requests: Sequence[Request]) -> EventStream:
        """Asks for one answer a request; raises QueueFull or EngineStopped.

        `await stream.accepted` raises ConfigError if the engine refuses a request.
        """
        if self.failure is not None or not self._thread.is_alive():
            raise EngineStopped("the engine has stopped; restart the server")
        if self.in_flight + len(requests) > self.max_in_flight:
            raise QueueFull(
                f"{self.in_flight} answers run or wait, {len(requests)} more were asked for, and "
                f"the server takes {self.max_in_flight}. Try again in {self.retry_after} s",
                self.retry_after,
            )
        stream = EventStream(self, requests)
        self.in_flight += len(requests)
        self._commands.put(("add", stream))
        return stream

    def forget(self, stream: EventStream) -> None:
        """Frees the places of a stream that nobody reads any more."""
        self.in_flight -= len(stream.open)
        stream.open.clear()
        self._commands.put(("cancel", stream))

    @property
    def retry_after(self) -> int:
        """Seconds after which a place is likely to be free: what an answer takes, 1 to 60."""
        return int(min(60, max(1, median(self._durations or [1]) + 0.5)))

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from submit to the first token: the median of the last 100 answers."""
        return median(self._first_tokens) if self._first_tokens else None

    def _deliver(
        self, items: list[tuple[EventStream, int, TokenOutput]], stats: dict | None
    ) -> None:
        self.stats = stats or self.stats
        now = time.monotonic()
        for stream, sample, event in items:
            if sample not in stream.open:
                continue  # its client left
            stream.put((sample, event))
            if event.finish is not None:
                stream.open.discard(sample)
                self.in_flight -= 1
                self._durations.append(now - stream.submitted)

    def note_first_token(self, seconds: float) -> None:
        """Takes note of how long an answer's first token took, for `time_to_first_token`."""
        self._first_tokens.append(seconds)

    def _accept(self, stream: EventStream) -> None:
        if not stream.accepted.done():
            stream.accepted.set_result(None)

    def _refuse(self, streams: list[EventStream], error: Exception) -> None:
        for stream in streams:
            self.in_flight -= len(stream.open)
            stream.open.clear()
            stream.put(error)
            if not stream.accepted.done():
                stream.accepted.set_exception(error)
                stream.accepted.exception()  # subtle: marks it as seen; the reader may have left

    # ------------------------------------------------------------ the engine's thread

    def _run(self) -> None:
        error: Exception = EngineStopped("the server was shut down before the answer was done")
        try:
            while self._take_commands():
                if self.engine.has_work:
                    self._publish(self.engine.step())
        except Exception as problem:  # whatever it was, nobody may wait for ever
            # subtle: frames and type only, for a message may quote what somebody wrote
            print("".join(traceback.format_tb(problem.__traceback__)), type(problem), flush=True)
            self.failure = problem
            error = EngineStopped(f"the engine failed ({type(problem).__name__})")
        streams = [stream for stream, _ in self._streams.values()]
        while not self._commands.empty():
            kind, stream = self._commands.get()
            streams += [stream] if kind == "add" else []
        self._call(self._refuse, list(dict.fromkeys(streams)), error)

    def _take_commands(self) -> bool:
        """Does what was asked since the last step; waits up to a second if there is nothing else
        to do. False: it is time to stop."""
        wait = not self.engine.has_work
        while wait or not self._commands.empty():
            wait = False
            try:
                kind, stream = self._commands.get(timeout=1.0)
            except queue.Empty:
                self._publish([])  # the tokens of the last seconds become fewer
                return True
            if kind == "stop":
                return False
            if kind == "add":
                self._add(stream)
            else:
                self._cancel(stream)
        return True

    def _add(self, stream: EventStream) -> None:
        try:
            for sample, request in enumerate(stream.requests):
                stream.ids.append(self.engine.add(request))
                self._streams[stream.ids[-1]] = stream, sample
        except ConfigError as error:
            self._cancel(stream)
            self._call(self._refuse, [stream], error)
        else:
            self._call(self._accept, stream)

    def _cancel(self, stream: EventStream) -> None:
        for request_id in stream.ids:
            if self._streams.pop(request_id, None) is not None:
                self.engine.cancel(request_id)

    def _publish(self, events: list[TokenOutput]) -> None:
        items = []
        for event in events:
            if event.id in self._streams:
                items.append((*self._streams[event.id], event))
                if event.finish is not None:
                    del self._streams[event.id]
        now = time.monotonic()
        if now - self._told > 0.25 or not self.engine.has_work:
            self._told, stats = now, self.engine.stats()
        else:
            stats = None
        self._call(self._deliver, items, stats)

    def _call(self, function, *arguments) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed: nobody reads any more
            self._commands.put(("stop", None))
