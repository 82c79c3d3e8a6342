"""One API call: its requests run in the engine, its response is a whole or a stream.

A call ends early when its client leaves or its time is up; its slots are freed at once.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from nanochat.chat.access import APIError, error_body
from nanochat.chat.async_engine import AsyncEngine
from nanochat.chat.choices import Choice
from nanochat.chat.limits import Limits
from nanochat.chat.schema import Sampling
from nanochat.common import print0
from nanochat.engine import Request


@dataclass(frozen=True)
class AppState:
    """What every call needs: the engine, the model's name, limits, what to log."""

    engine: AsyncEngine
    model_name: str
    limits: Limits
    tool_name: str = "calculator"
    log: Callable[[str], object] = print0
    log_messages: bool = False


class Completion:
    """One call: `await Completion(...).response()`. Raises what AsyncEngine.submit raises."""

    def __init__(
        self,
        state: AppState,
        body: Sampling,
        requests: list[Request],
        http: HttpRequest,
        chat: bool = False,
        forgotten_turns: int = 0,
    ):
        self.state, self.body, self.chat = state, body, chat
        self.extension = {"forgotten_turns": forgotten_turns} if forgotten_turns else {}
        self.stream = state.engine.submit(requests, state.limits.seconds)
        self.choices = [Choice(state.engine.engine.tokenizer, chat) for _ in requests]
        prompts = {id(request.prompt): len(request.prompt) for request in requests}
        self.prompt_tokens = sum(prompts.values())  # of each prompt once
        self.head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12),
            "created": int(time.time()),
            "model": state.model_name,
        }

        async def watch() -> None:
            while (await http.receive())["type"] != "http.disconnect":
                pass
            self.stream.close()

        self._watcher = asyncio.create_task(watch())

    async def response(self) -> Response:
        """The answers as one JSON body, or as server-sent events if the client asked for them."""
        if self.body.stream:
            headers = {"x-accel-buffering": "no"}
            return StreamingResponse(self._lines(), headers=headers, media_type="text/event-stream")
        async for _ in self._read():
            pass
        choices = []
        for index, choice in enumerate(self.choices):
            said = {"message": self._message(choice)} if self.chat else {"text": choice.text}
            choices.append(self._entry(index, said, choice.finish))
        name = "chat.completion" if self.chat else "text_completion"
        body = {**self.head, "object": name, "choices": choices, "usage": self._usage()}
        if self.chat:
            body["nanochat"] = self._timing(self.choices[0])
        return JSONResponse(body)

    # ------------------------------------------------------------ the engine's events

    async def _read(self) -> AsyncIterator[tuple[int, dict | None]]:
        """(choice, the part that is new) as events come; frees everything and logs at the end."""
        try:
            async for index, event in self.stream:
                yield index, self.choices[index].push(event)
        except TimeoutError:
            if not any(choice.num_tokens for choice in self.choices):
                message = f"no place was free for {self.state.limits.seconds:.0f} s"
                retry = {"retry-after": str(self.state.engine.retry_after)}
                raise APIError(503, message, "overloaded", retry) from None
            self.extension["timed_out"] = True
            for index, choice in enumerate(self.choices):
                if choice.finish is None:
                    yield index, choice.end("length")
        finally:
            self._watcher.cancel()
            self.stream.close()
            self._log()

    def _log(self) -> None:
        first = self.choices[0]
        written = sum(choice.num_tokens for choice in self.choices)
        ends = ",".join(choice.finish or "cut off" for choice in self.choices)
        line = f"{self.prompt_tokens} tokens read, {written} written ({ends})"
        if first.time_to_first_token is not None:
            line += f", first after {first.time_to_first_token:.2f} s"
        if first.tokens_per_second is not None:
            line += f", {first.tokens_per_second:.1f} tokens/s"
        if self.state.log_messages:
            messages = self.body.model_dump(include={"messages", "prompt"}, exclude_none=True)
            answers = [choice.parts for choice in self.choices]
            line += "\n" + json.dumps({**messages, "answers": answers})
        self.state.log(line)

    # ------------------------------------------------------------ OpenAI's forms

    def _entry(self, index: int, said: dict, finish: str | None = None) -> dict:
        logprobs = self.choices[index].take_logprobs()
        return {"index": index, "finish_reason": finish, "logprobs": logprobs, **said}

    def _tool_call(self, index: int, code: str) -> dict:
        function = {"name": self.state.tool_name, "arguments": code}
        return {"id": f"call_{index}", "type": "function", "function": function}

    def _message(self, choice: Choice) -> dict:
        """A whole answer; if it used a tool, with the order of its parts."""
        message = {"role": "assistant", "content": choice.text}
        calls = [part["text"] for part in choice.parts if part["type"] == "python"]
        if calls:
            message["tool_calls"] = [self._tool_call(i, code) for i, code in enumerate(calls)]
            message["nanochat"] = {"parts": choice.parts}
        return message

    def _delta(self, choice: Choice, part: dict | None) -> dict:
        """What a stream says of a new part."""
        if not self.chat:
            return {"text": part["text"] if part else ""}
        if part is None:
            return {"delta": {}}
        if part["type"] == "text":
            return {"delta": {"content": part["text"]}}
        if part["type"] == "python_output":
            return {"delta": {"nanochat": part}}
        index = sum(one["type"] == "python" for one in choice.parts) - 1
        call = {"index": index, **self._tool_call(index, part["text"])}
        return {"delta": {"tool_calls": [call]}}

    def _timing(self, choice: Choice) -> dict:
        return {
            "type": "timing",
            "tokens_per_second": choice.tokens_per_second,
            "time_to_first_token": choice.time_to_first_token,
            **self.extension,
        }

    def _usage(self) -> dict:
        written = sum(choice.num_tokens for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }

    # ------------------------------------------------------------ server-sent events

    async def _lines(self) -> AsyncIterator[str]:
        name = "chat.completion.chunk" if self.chat else "text_completion"
        options = self.body.stream_options
        with_usage = options is not None and options.include_usage

        def line(choices: list[dict], usage: dict | None = None) -> str:
            chunk = {**self.head, "object": name, "choices": choices}
            if with_usage:
                chunk["usage"] = usage
            return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"

        events = self._read()
        try:
            if self.chat:
                first = {"delta": {"role": "assistant", "content": ""}}
                for index in range(len(self.choices)):
                    yield line([self._entry(index, first)])
            async for index, part in events:
                choice = self.choices[index]
                entry = self._entry(index, self._delta(choice, part))
                if part is not None or entry["logprobs"] is not None:
                    yield line([entry])
                if choice.finish is not None:
                    last = {"delta": {"nanochat": self._timing(choice)}}
                    said = last if self.chat else {"text": ""}
                    yield line([self._entry(index, said, choice.finish)])
            if with_usage:
                yield line([], self._usage())
            yield "data: [DONE]\n\n"
        except APIError as error:  # an event, because the status was 200 long ago
            yield f"data: {json.dumps(error_body(error))}\n\n"
        finally:
            await events.aclose()
