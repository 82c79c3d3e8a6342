"""One call of the API under way: its samples run in the engine, its response is a stream or a
whole.

A call ends early when its client leaves or its time is up; either way its slots are freed at once.
"""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from nanochat.chat.access import Refusal, error_body
from nanochat.chat.async_engine import AsyncEngine
from nanochat.chat.choices import Choice, usage
from nanochat.chat.schema import Limits, Sampling
from nanochat.common import print0
from nanochat.engine import Request


class ClientGone(Exception):
    """Nobody reads the response any more."""


class TimeUp(Exception):
    """The call took as long as a call may."""


@dataclass(frozen=True)
class AppState:
    """What every call needs: the engine's thread, the model's name, limits, what to log."""

    thread: AsyncEngine
    name: str
    limits: Limits
    tool_name: str = "calculator"
    log: Callable[[str], object] = print0
    log_messages: bool = False


class Completion:
    """One call: `await Completion.start(...)`, then `await call.response()`."""

    def __init__(self, served: AppState, asked: Sampling, requests: list[Request], chat: bool):
        self.served, self.asked, self.chat = served, asked, chat
        self.requests, self.forgotten, self.timed_out = requests, 0, False
        tokenizer, thread = served.thread.engine.tokenizer, served.thread
        self.stream = thread.submit(requests)
        self.choices = [Choice(tokenizer, served.tool_name, plain=not chat) for _ in requests]
        distinct = {id(request.prompt): len(request.prompt) for request in requests}
        self.prompt_tokens = sum(distinct.values())
        self.head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12),
            "created": int(time.time()),
            "model": served.name,
        }

    @classmethod
    async def start(cls, served, asked, requests, http: HttpRequest, chat: bool, forgotten=0):
        """Hands the requests to the engine; raises QueueFull, EngineStopped or ConfigError."""
        call = cls(served, asked, requests, chat)
        call.forgotten = forgotten
        call._guard(http)
        try:
            await call.stream.accepted
        except BaseException:
            call.close()
            raise
        return call

    def _guard(self, http: HttpRequest) -> None:
        """Ends the call when its client leaves, or its time is up."""
        stream = self.stream

        async def watch() -> None:
            while (await http.receive())["type"] != "http.disconnect":
                pass
            stream.interrupt(ClientGone())
            self._timer.cancel()

        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.served.limits.seconds, stream.interrupt, TimeUp())
        self._watcher = loop.create_task(watch())

    def close(self) -> None:
        self._timer.cancel()
        self._watcher.cancel()
        self.stream.close()

    async def response(self) -> Response:
        """The whole answer, or a stream of it, as the client asked."""
        if self.asked.stream:
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            return StreamingResponse(self._lines(), headers=headers, media_type="text/event-stream")
        try:
            async for _ in self._read():
                pass
        except ClientGone:
            return Response(status_code=499)  # nobody will see it; the log will
        finally:
            self.close()
        object_name = "chat.completion" if self.chat else "text_completion"
        choices = [self._whole(i, reply) for i, reply in enumerate(self.choices)]
        body = {**self.head, "object": object_name, "choices": choices}
        body["usage"] = usage(self.prompt_tokens, self.choices)
        if self.chat:
            body["nanochat"] = self._extension(self.choices[0])
        return JSONResponse(body)

    # ------------------------------------------------------------ reading the engine's events

    async def _read(self) -> AsyncIterator[tuple[int, list[dict], bool]]:
        """(sample, deltas, whether it ended just now) as events come; counts and logs at the
        end."""
        try:
            async for sample, event in self.stream:
                reply = self.choices[sample]
                running, fresh = reply.finish is None, reply.first is None
                deltas = reply.push(event)
                if fresh and reply.first is not None:
                    self.served.thread.note_first_token(reply.first - reply.submitted)
                yield sample, deltas, running and reply.finish is not None
        except TimeUp:
            if all(reply.num_tokens == 0 for reply in self.choices):
                seconds = self.served.limits.seconds
                retry = [(b"retry-after", str(self.served.thread.retry_after).encode())]
                raise Refusal(
                    503, f"no place was free for {seconds:.0f} s", "overloaded", retry
                ) from None
            self.timed_out = True
            for sample, reply in enumerate(self.choices):
                if reply.finish is None:
                    yield sample, reply.end("length"), True
        finally:
            self._log()

    def _log(self) -> None:
        timing = self.choices[0].timing()
        first, speed = timing["time_to_first_token"], timing["tokens_per_second"]
        written = sum(reply.num_tokens for reply in self.choices)
        ends = ",".join(reply.finish or "cut off" for reply in self.choices)
        line = f"{self.prompt_tokens} tokens read, {written} written ({ends})"
        line += f", first after {first:.2f} s" if first is not None else ""
        line += f", {speed:.1f} tokens/s" if speed is not None else ""
        line += ", time was up" if self.timed_out else ""
        if self.served.log_messages:
            asked = self.asked.model_dump(include={"messages", "prompt"}, exclude_none=True)
            said = {**asked, "answers": [reply.parts for reply in self.choices]}
            line += "\n" + json.dumps(said, ensure_ascii=True)
        self.served.log(line)

    # ------------------------------------------------------------ the forms of a response

    def _extension(self, reply: Choice) -> dict:
        extension = reply.timing()
        if self.forgotten:
            extension["forgotten_turns"] = self.forgotten
        if self.timed_out:
            extension["timed_out"] = True
        return extension

    def _whole(self, index: int, reply: Choice) -> dict:
        entries = reply.take_logprobs()
        choice = {"index": index, "finish_reason": reply.finish, "logprobs": None}
        if self.requests[index].logprobs is not None:
            choice["logprobs"] = self._logprobs(entries)
        said = {"message": reply.message()} if self.chat else {"text": reply.text}
        return {**choice, **said}

    def _logprobs(self, entries: list[dict], offset: int = 0) -> dict:
        if self.chat:
            return {"content": entries, "refusal": None}
        offsets = [offset + sum(len(e["token"]) for e in entries[:i]) for i in range(len(entries))]
        return {
            "tokens": [e["token"] for e in entries],
            "token_logprobs": [e["logprob"] for e in entries],
            "top_logprobs": [
                {t["token"]: t["logprob"] for t in e["top_logprobs"]} for e in entries
            ],
            "text_offset": offsets,
        }

    def _chunk(self, choices: list[dict], used: dict | None = None) -> str:
        name = "chat.completion.chunk" if self.chat else "text_completion"
        body = {**self.head, "object": name, "choices": choices}
        if self.asked.stream_options and self.asked.stream_options.include_usage:
            body["usage"] = used
        return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"

    def _piece(self, sample: int, delta: dict, finish=None, entries: list[dict] = ()) -> str:
        choice = {"index": sample, "finish_reason": finish, "logprobs": None}
        if entries:
            before = len(self.choices[sample].text) - len(delta.get("content", ""))
            choice["logprobs"] = self._logprobs(list(entries), before)
        said = {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        return self._chunk([{**choice, **said}])

    async def _lines(self) -> AsyncIterator[str]:
        """The response as server-sent events."""
        try:
            if self.chat:
                for sample in range(len(self.choices)):
                    yield self._piece(sample, {"role": "assistant", "content": ""})
            async with contextlib.aclosing(self._read()) as pieces:
                async for sample, deltas, ended in pieces:
                    for line in self._told(sample, deltas, ended):
                        yield line
            if self.asked.stream_options and self.asked.stream_options.include_usage:
                yield self._chunk([], usage(self.prompt_tokens, self.choices))
            yield "data: [DONE]\n\n"
        except ClientGone:
            return
        except Exception as problem:  # the status was 200 long ago: the error is an event
            status = problem.status if isinstance(problem, Refusal) else 503
            yield f"data: {json.dumps(error_body(status, str(problem)))}\n\n"
        finally:
            self.close()

    def _told(self, sample: int, deltas: list[dict], ended: bool) -> list[str]:
        """The events of what is new of one sample."""
        reply = self.choices[sample]
        entries = reply.take_logprobs()
        lines = []
        for delta in deltas or ([{}] if entries else []):
            lines.append(self._piece(sample, delta, None, entries))
            entries = []
        if ended:
            last = {"nanochat": self._extension(reply)}
            lines.append(self._piece(sample, last, reply.finish))
        return lines
