"""One API call: its requests run in the engine, its response is a whole or a stream.

A call ends early when its client leaves or its time is up.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from nanochat.chat.access import APIError, error_response
from nanochat.chat.async_engine import AsyncEngine
from nanochat.chat.choices import Choice
from nanochat.chat.limits import Limits
from nanochat.chat.schema import Sampling
from nanochat.common import print0
from nanochat.engine import Request


@dataclass(frozen=True)
class AppState:
    engine: AsyncEngine
    model_name: str
    limits: Limits
    tool_name: str = "calculator"
    log: Callable[[str], object] = print0
    log_messages: bool = False


class Completion:
    """One call: `await Completion(...).response()`. Raises what AsyncEngine.submit raises."""

    def __init__(
        self, state: AppState, body: Sampling, requests: list[Request], http: HttpRequest,
        chat: bool = False, forgotten_turns: int = 0,
    ):  # fmt: skip
        self.state, self.body, self.chat = state, body, chat
        self.extension = {"forgotten_turns": forgotten_turns} if forgotten_turns else {}
        self.stream = state.engine.submit(requests, state.limits.seconds)
        self.choices = [Choice(state.engine.engine.tokenizer, chat) for _ in requests]
        self.prompt_tokens = sum(len(r.prompt) for r in requests if r.sample_index == 0)
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        self.head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12),
            "object": kind if chat else "text_completion",
            "created": int(time.time()),
            "model": state.model_name,
        }

        async def watch() -> None:
            while (await http.receive())["type"] != "http.disconnect":
                pass
            self.stream.close()

        self._watcher = asyncio.create_task(watch())

    async def response(self) -> Response:
        """The answers as one JSON body, or as server-sent events if asked for."""
        if self.body.stream:
            headers = {"x-accel-buffering": "no"}
            return StreamingResponse(self._lines(), headers=headers, media_type="text/event-stream")
        async for _ in self._read():
            pass
        choices = []
        for index, choice in enumerate(self.choices):
            message = {"role": "assistant", "content": choice.text}
            if any(part["type"] != "text" for part in choice.parts):
                message["nanochat"] = {"parts": choice.parts}
            answer = {"message": message} if self.chat else {"text": choice.text}
            choices.append(self._entry(index, answer, choice.finish))
        body = {**self.head, "choices": choices, "usage": self._usage()}
        if self.chat:
            body["nanochat"] = {**self.choices[0].timing, **self.extension}
        return JSONResponse(body)

    async def _read(self) -> AsyncIterator[tuple[int, dict | None]]:
        """(choice, the part that is new) as events come; frees everything and logs at the end."""
        engine = self.state.engine
        try:
            async for index, event in self.stream:
                yield index, self.choices[index].push(event)
        except TimeoutError:
            if not any(choice.num_tokens for choice in self.choices):
                message = f"no place was free for {self.state.limits.seconds:.0f} s"
                retry = {"retry-after": str(engine.retry_after)}
                raise APIError(503, message, "overloaded", retry) from None
            self.extension["timed_out"] = True
            for index, choice in enumerate(self.choices):
                if choice.finish is None:
                    yield index, choice.end("length")
        finally:
            self._watcher.cancel()
            self.stream.close()
            engine.durations += [time.monotonic() - c.submitted for c in self.choices if c.finish]
            self._log()

    def _log(self) -> None:
        written, timing = self._usage()["completion_tokens"], self.choices[0].timing
        ends = ",".join(choice.finish or "cut off" for choice in self.choices)
        line = f"{self.prompt_tokens} tokens read, {written} written ({ends})"
        if seconds := timing["time_to_first_token"]:
            line += f", first after {seconds:.2f} s"
        if speed := timing["tokens_per_second"]:
            line += f", {speed:.1f} tokens/s"
        if self.state.log_messages:
            messages = self.body.model_dump(include={"messages", "prompt"}, exclude_none=True)
            answers = [choice.parts for choice in self.choices]
            line += "\n" + json.dumps({**messages, "answers": answers})
        self.state.log(line)

    def _entry(self, index: int, answer: dict, finish: str | None = None) -> dict:
        logprobs = self.choices[index].take_logprobs()
        return {"index": index, "finish_reason": finish, "logprobs": logprobs, **answer}

    def _delta(self, part: dict) -> dict:
        """What a stream says of a new part, or of the timing at the end."""
        if not self.chat:
            return {"text": part.get("text", "")}
        delta = {"content": part["text"]} if part["type"] == "text" else {"nanochat": part}
        return {"delta": delta}

    def _usage(self) -> dict:
        written = sum(choice.num_tokens for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }

    async def _lines(self) -> AsyncIterator[str]:
        """Server-sent events."""
        options = self.body.stream_options
        with_usage = options is not None and options.include_usage

        def line(choices: list[dict], usage: dict | None = None) -> str:
            chunk = {**self.head, "choices": choices, **({"usage": usage} if with_usage else {})}
            return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"

        events = self._read()
        try:
            if self.chat:
                first = {"delta": {"role": "assistant", "content": ""}}
                for index in range(len(self.choices)):
                    yield line([self._entry(index, first)])
            async for index, part in events:
                choice = self.choices[index]
                entry = self._entry(index, self._delta(part or {"type": "text", "text": ""}))
                if part or entry["logprobs"]:
                    yield line([entry])
                if choice.finish is not None:
                    last = self._delta({**choice.timing, **self.extension})
                    yield line([self._entry(index, last, choice.finish)])
            if with_usage:
                yield line([], self._usage())
            yield "data: [DONE]\n\n"
        except APIError as error:  # an event, because the status was 200 long ago
            yield f"data: {error_response(error).body.decode()}\n\n"
        finally:
            await events.aclose()
