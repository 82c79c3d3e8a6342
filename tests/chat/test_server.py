"""The server, run for real on loopback and asked by OpenAI's own client and by plain HTTP."""

import asyncio
import gc
import json
import socket
import threading
import time
from functools import cached_property

import httpx
import pytest
import uvicorn
from chain_model import chain_model, chain_tokenizer
from hypothesis import HealthCheck, given, settings

from nanochat.chat.async_engine import AsyncEngine
from nanochat.chat.completions import AppState, Completion
from nanochat.chat.limits import Limits
from nanochat.chat.server import create_app, validation_message
from nanochat.engine import Engine, Request

TOKENIZER = chain_tokenizer()
# After <|assistant_start|>: "one", or a tool call; or round and round the capitals, by a coin.
SAYS_ONE = "<|assistant_start|>one<|assistant_end|>"
SAYS_SUM = (
    "<|assistant_start|>S:<|python_start|>1+2<|python_end|>",
    "<|output_end|>!<|assistant_end|>",
)
ROUND = "<|assistant_start|>ABCDEFGHIJA"


class Running:
    """A server on a free port of loopback, in a thread of this process."""

    def __init__(self, *texts, tool=None, context=256, state=None, **options):
        limits = Limits(**{"max_tokens": 400, "temperature": 0.0, **options.pop("limits", {})})
        model = chain_model(TOKENIZER, *texts, context=context)
        engine = Engine(model, TOKENIZER, *([tool] if tool else []), **options.pop("engine", {}))
        self.engine, self.lines = AsyncEngine(engine, limits.in_flight), []
        log = self.lines.append
        state = AppState(self.engine, "tiny", limits, log=log, **(state or {}))
        app = create_app(state, **options)
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        self._runner = threading.Thread(target=self.server.run)

    def __enter__(self):
        self._runner.start()
        while not self.server.started:
            time.sleep(0.005)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url, self.address = f"http://127.0.0.1:{port}", ("127.0.0.1", port)
        # No certificates: reading them takes longer than most tests, and the address is http.
        self.http = httpx.Client(base_url=self.url, timeout=20, verify=False)
        return self

    def __exit__(self, *_):
        self.http.close()
        if "openai" in vars(self):
            self.openai.close()
        self.server.should_exit = True
        self._runner.join()

    @cached_property
    def openai(self):
        """OpenAI's own client of this server. subtle: its import takes a second."""
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def chat(self, text="Hi", **fields):
        """The response to one user message, by plain HTTP."""
        body = {"messages": [{"role": "user", "content": text}], **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def until(self, condition):
        """Waits until what /health says meets a condition; gives up after a few seconds."""
        for _ in range(1000):
            health = self.http.get("/health").json()
            if condition(health):
                return health
            time.sleep(0.005)
        raise AssertionError(f"never came: {health}")


@pytest.fixture(scope="module")
def one():
    with Running(SAYS_ONE) as running:
        yield running


@pytest.fixture(scope="module")
def sums():
    with Running(*SAYS_SUM) as running:
        yield running


@pytest.fixture(scope="module")
def dice():
    """Round and round, by chance: after every letter any other of five."""
    pairs = [a + b for a in "ABCDE" for b in "ABCDE"]
    with Running(*("<|assistant_start|>" + a for a in "ABCDE"), *pairs) as running:
        yield running


def events(response) -> list:
    """The data of server-sent events: JSON, but for [DONE]."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in response.text.split("\n\n") if line)
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


HI = [{"role": "user", "content": "Hi"}]

# ---------------------------------------------------------------- OpenAI's client


def test_a_whole_answer(one):
    answer = one.openai.chat.completions.create(model="tiny", messages=HI)
    assert answer.object == "chat.completion" and answer.model == "tiny"
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "one")
    assert choice.finish_reason == "stop" and choice.message.tool_calls is None
    # <|bos|> <|user_start|> H i <|user_end|> <|assistant_start|>; o n e, the stop token not counted
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 6, "completion_tokens": 3, "total_tokens": 9,
    }  # fmt: skip


def test_a_stream(one):
    options = {"include_usage": True}
    chunks = list(
        one.openai.chat.completions.create(
            model="tiny", messages=HI, stream=True, stream_options=options
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1
    *told, last = chunks
    assert told[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == "one"
    assert [chunk.choices[0].finish_reason for chunk in told] == [None] * (len(told) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in told)
    assert last.choices == [] and last.usage.completion_tokens == 3 and last.usage.total_tokens == 9
    timing = told[-1].choices[0].delta.nanochat
    assert timing["type"] == "timing" and timing["time_to_first_token"] > 0


def test_a_stream_as_it_is_on_the_wire(one):
    response = one.chat(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == ["", "o", "n", "e", None]
    assert all("usage" not in chunk for chunk in chunks)


def test_a_tool_call_in_a_whole_answer(sums):
    message = sums.openai.chat.completions.create(model="tiny", messages=HI).choices[0].message
    assert message.content == "S:!"
    assert message.tool_calls is None
    assert message.nanochat["parts"] == [
        {"type": "text", "text": "S:"},
        {"type": "python", "text": "1+2"},
        {"type": "python_output", "text": "3"},
        {"type": "text", "text": "!"},
    ]


def test_a_tool_call_in_a_stream(sums):
    deltas = [chunk["choices"][0]["delta"] for chunk in events(sums.chat(stream=True))[1:-2]]
    assert deltas == [
        {"content": "S"},
        {"content": ":"},
        {"nanochat": {"type": "python", "text": "1+2"}},
        {"nanochat": {"type": "python_output", "text": "3"}},
        {"content": "!"},
    ]
    # S : <|python_start|> 1 + 2 <|python_end|> <|output_start|> 3 <|output_end|> !
    assert sums.chat().json()["usage"]["completion_tokens"] == 11


def test_tool_choice_none_leaves_the_call_unanswered(sums):
    """The model's call stays; nothing runs it, and nothing is forced in."""
    message = sums.chat(tool_choice="none", max_tokens=7).json()["choices"][0]["message"]
    assert [part["type"] for part in message["nanochat"]["parts"]] == ["text", "python"]


def test_an_answer_sent_back_is_read_as_it_was_said(sums):
    """By the openai client's own message, by tool messages, and by parts: the same prompt."""
    said = sums.openai.chat.completions.create(model="tiny", messages=HI).choices[0].message
    call = {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": "1+2"}}
    again = {"role": "user", "content": "Hm"}
    histories = [
        [said.model_dump(exclude_none=True)],
        [{"role": "assistant", "content": said.nanochat["parts"]}],
        [
            {"role": "assistant", "content": "S:", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
            {"role": "assistant", "content": "!"},
        ],
    ]
    for history in histories:
        body = {"messages": [*HI, *history, again]}
        used = sums.http.post("/v1/chat/completions", json=body).json()["usage"]
        # the first prompt 6, the answer 11 and its end, <|user_start|> H m <|user_end|>, start
        assert used["prompt_tokens"] == 6 + 11 + 1 + 5


# ---------------------------------------------------------------- how answers are drawn


def test_seed_and_n(dice):
    def texts(**fields):
        fields = {"max_tokens": 30, "temperature": 1.0, **fields}
        choices = dice.chat(**fields).json()["choices"]
        assert [choice["index"] for choice in choices] == list(range(len(choices)))
        assert {choice["finish_reason"] for choice in choices} == {"length"}
        return [choice["message"]["content"] for choice in choices]

    three = texts(seed=1, n=3)
    assert len(set(three)) == 3 and texts(seed=1, n=3) == three
    assert texts(seed=1) == three[:1]  # the crowd beside it changes nothing
    assert texts(seed=2) != three[:1]
    assert texts() != texts()  # without a seed, another every time
    assert texts(temperature=0) == ["A" * 30]  # of equal ones the first


def test_samples_of_a_stream_keep_their_index(dice):
    fields = {"max_tokens": 12, "temperature": 1.0, "seed": 5, "n": 4}
    whole = [choice["message"]["content"] for choice in dice.chat(**fields).json()["choices"]]
    streamed = [""] * 4
    for chunk in events(dice.chat(stream=True, **fields))[:-1]:
        [choice] = chunk["choices"]
        streamed[choice["index"]] += choice["delta"].get("content", "")
    assert streamed == whole


@pytest.mark.parametrize("stop", ["EF", ["FGH", "DEF", "EFG"]], ids=["one", "several"])
def test_stop_strings(stop):
    expected = "ABCD" if stop == "EF" else "ABC"
    with Running(ROUND) as running:
        choice = running.chat(stop=stop).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "stop")
        deltas = [
            c["choices"][0]["delta"] for c in events(running.chat(stop=stop, stream=True))[:-1]
        ]
        assert "".join(delta.get("content", "") for delta in deltas) == expected


def test_lengths(one):
    with Running(ROUND, limits={"max_tokens": 20}) as running:
        for fields, tokens in [
            ({"max_tokens": 4}, 4),
            ({"max_completion_tokens": 5, "max_tokens": 4}, 5),
            ({"max_tokens": 4000}, 20),
            ({}, 20),
        ]:
            answer = running.chat(**fields).json()
            assert answer["usage"]["completion_tokens"] == tokens
            assert answer["choices"][0]["finish_reason"] == "length"


def test_logprobs(dice):
    """Five letters share what the other 315 ids leave: the logits are 15 tanh(sqrt(320) / 15)."""
    from math import exp, log, sqrt, tanh

    high = 15 * tanh(sqrt(320) / 15)
    expected = high - log(5 * exp(high) + 315)
    answer = dice.chat(max_tokens=3, logprobs=True, top_logprobs=2).json()
    entries = answer["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == ["A"] * 3 and entries[0]["bytes"] == [65]
    assert [entry["logprob"] for entry in entries] == pytest.approx([expected] * 3, abs=1e-4)
    assert [len(entry["top_logprobs"]) for entry in entries] == [2] * 3
    chunks = events(dice.chat(max_tokens=3, logprobs=True, stream=True))[:-1]
    streamed = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
    assert [e["token"] for one in streamed for e in one["content"]] == ["A"] * 3


def test_a_history_longer_than_the_context_loses_its_oldest_turns(one):
    turn = [{"role": "user", "content": "x" * 50}, {"role": "assistant", "content": "y" * 50}]
    body = {"messages": turn * 4 + HI}
    answer = one.http.post("/v1/chat/completions", json=body).json()
    # a turn has 104 tokens, the last 5 with <|bos|> and <|assistant_start|>; 192 of 256 may be used
    assert answer["nanochat"]["forgotten_turns"] == 3
    assert answer["usage"]["prompt_tokens"] == 104 + 6
    refused = one.http.post("/v1/chat/completions", json={**body, "truncation": "disabled"})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"


# ---------------------------------------------------------------- plain completions


def test_plain_completions():
    with Running("abcdefgh", "stop<|bos|>") as running:
        create = running.openai.completions.create
        answer = create(model="tiny", prompt=["a", "xs"], max_tokens=4)
        assert [choice.text for choice in answer.choices] == ["bcde", "top"]
        assert [choice.finish_reason for choice in answer.choices] == ["length", "stop"]
        assert answer.usage.prompt_tokens == 2 + 3  # with a <|bos|> each
        ids = TOKENIZER.encode_ordinary("a")
        streamed = create(model="tiny", prompt=ids, max_tokens=3, stream=True, logprobs=1)
        *chunks, last = list(streamed)
        assert "".join(chunk.choices[0].text for chunk in chunks) == "bcd"
        assert [chunk.choices[0].logprobs.text_offset for chunk in chunks] == [[0], [1], [2]]
        assert last.choices[0].finish_reason == "length"


def test_ids_of_special_tokens_are_refused(one):
    start = TOKENIZER.special("<|assistant_start|>")
    response = one.http.post("/v1/completions", json={"prompt": [65, start]})
    assert response.status_code == 400 and str(start) in response.json()["error"]["message"]
    bos = one.http.post("/v1/completions", json={"prompt": [TOKENIZER.bos, 65], "max_tokens": 1})
    assert bos.json()["usage"]["prompt_tokens"] == 2


# ---------------------------------------------------------------- errors and limits

TEXT = "quiet-word"
BAD = [
    ({}, "messages"),
    ({"messages": [{"role": "robot", "content": TEXT}]}, "role"),
    ({"messages": [{"role": "user", "content": TEXT, "tool_calls": TEXT}]}, "tool_calls"),
    ({"messages": [{"role": "tool", "content": TEXT}]}, "call"),
    ({"messages": HI, "stop": [TEXT] * 65}, "stop"),
    ({"messages": HI, "n": 17}, "17"),
    ({"messages": HI, "frequency_penalty": TEXT}, "repetition_penalty"),
    ({"messages": [{"role": "user", "content": TEXT * 40}]}, "context of 256"),
    ({"messages": HI * 600}, "600"),
]


@pytest.mark.parametrize("body, expected", BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_cannot_be_obeyed_is_400_and_says_why(one, body, expected):
    response = one.http.post("/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error"
    assert expected in error["message"] and TEXT not in error["message"]


def test_other_errors_have_the_same_form(one):
    for status, response in [
        (400, one.http.post("/v1/chat/completions", content=b"{", headers=JSON)),
        (404, one.http.get("/v1/nothing")),
        (404, one.http.get("/v1/models/gpt-4")),
        (404, one.http.post("/v1/chat/completions", json={"model": "gpt-4", "messages": HI})),
        (405, one.http.get("/v1/chat/completions")),
        (400, one.http.post("/v1/completions", json={"prompt": "a", "echo": True})),
    ]:
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "code"}
    import openai

    with pytest.raises(openai.NotFoundError, match="there is tiny"):
        one.openai.chat.completions.create(model="gpt-4", messages=HI)


JSON = {"content-type": "application/json"}


def test_a_body_that_is_too_long_is_413():
    with Running(SAYS_ONE, limits={"body_bytes": 500}) as running:
        assert running.chat("x" * 100).status_code == 200
        assert running.chat("x" * 500).status_code == 413  # by its Content-Length
        chunks = (b"x" * 100 for _ in range(10))  # without one
        response = running.http.post("/v1/chat/completions", content=chunks, headers=JSON)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"


def test_too_many_answers_are_429_until_a_client_leaves():
    """A tool that waits holds two answers; the third is refused, and taken once one has left."""
    may_go = threading.Event()

    def slow(_):
        may_go.wait(120)
        return "3"

    with Running(*SAYS_SUM, tool=slow, limits={"in_flight": 2}) as running:
        body = {"messages": HI, "stream": True}
        streams = [running.http.stream("POST", "/v1/chat/completions", json=body) for _ in "12"]
        first = [stream.__enter__() for stream in streams]
        assert [response.status_code for response in first] == [200, 200]
        refused = running.chat()
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        import openai

        with pytest.raises(openai.RateLimitError):
            running.openai.chat.completions.create(model="tiny", messages=HI)
        streams[0].__exit__(None, None, None)  # a client leaves in the middle
        health = running.until(lambda health: health["in_flight"] == 1)
        assert health["max_in_flight"] == 2
        running.until(lambda _: any("(cut off)" in line for line in running.lines))
        may_go.set()
        assert running.chat().json()["choices"][0]["message"]["content"] == "S:!"
        assert "[DONE]" in "".join(first[1].iter_text())
        streams[1].__exit__(None, None, None)
        assert running.until(lambda health: health["in_flight"] == 0)["running"] == 0


def test_a_client_that_leaves_before_a_whole_answer_frees_its_place():
    with Running(ROUND, limits={"max_tokens": 100_000}, context=8192) as running:
        sent = json.dumps({"messages": HI}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection(running.address) as connection:
            connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(sent) + sent)
            running.until(lambda health: health["in_flight"] == 1)
        running.until(lambda health: health["in_flight"] == health.get("running") == 0)


@pytest.mark.slow
def test_time_that_is_up_ends_an_answer_with_what_there_is():
    with Running(ROUND, limits={"seconds": 1.0, "max_tokens": 100_000}, context=65536) as running:
        answer = running.chat().json()
        [choice] = answer["choices"]
        assert choice["finish_reason"] == "length" and answer["nanochat"]["timed_out"]
        said = choice["message"]["content"]
        assert said.startswith("ABCDEFGHIJABC") and len(said) < 65000
        chunks = events(running.chat(stream=True))
        assert chunks[-1] == "[DONE]" and chunks[-2]["choices"][0]["finish_reason"] == "length"


def test_time_that_is_up_before_the_first_token_is_503():
    options = {"engine": {"max_batch": 1}, "context": 16384}
    with Running(ROUND, **options, limits={"seconds": 0.3}) as running:

        async def take_the_slot():
            return running.engine.submit([Request(TOKENIZER.encode("A"), 16000)], 60)

        loop = running.engine._loop
        stream = asyncio.run_coroutine_threadsafe(take_the_slot(), loop).result()
        response = running.chat()
        loop.call_soon_threadsafe(stream.close)
        assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1


def test_an_api_key(one):
    import openai

    with Running(SAYS_ONE, api_key="sesame") as running:
        with pytest.raises(openai.AuthenticationError):
            running.openai.models.list()
        right = openai.OpenAI(base_url=f"{running.url}/v1", api_key="sesame")
        assert right.models.retrieve("tiny").max_model_len == 256
        right.close()
        assert running.http.get("/health").status_code == running.http.get("/").status_code == 200
    assert one.openai.models.list().data[0].id == "tiny"


def test_pages_of_other_sites_are_kept_out():
    evil, good = {"origin": "https://evil.example"}, {"origin": "https://good.example"}
    with Running(SAYS_ONE, hosts=["127.0.0.1"]) as running:
        post = running.http.post
        own = {"origin": running.url}
        assert [post("/v1/chat/completions", json={"messages": HI}, headers=h).status_code
                for h in (evil, own)] == [403, 200]  # fmt: skip
        proxied = {**good, "sec-fetch-site": "same-origin"}
        assert post("/v1/chat/completions", json={"messages": HI}, headers=proxied).is_success
        rebound = running.http.get("/v1/models", headers={"host": "evil.example"})
        assert rebound.status_code == 403 and "--allow-origin" in rebound.text
        assert (
            "access-control-allow-origin" not in running.http.get("/health", headers=evil).headers
        )
    with Running(SAYS_ONE, origins=["https://good.example"], api_key="sesame") as running:
        asks = {"access-control-request-method": "POST"}
        asks["access-control-request-headers"] = "authorization,content-type"
        flight = running.http.options("/v1/chat/completions", headers={**good, **asks})
        assert flight.headers["access-control-allow-origin"] == "https://good.example"
        other = running.http.options("/v1/chat/completions", headers={**evil, **asks})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.slow
def test_no_request_of_the_documents_form_makes_the_server_fail():
    """Schemathesis: requests made from the OpenAPI document, right ones and wrong ones."""
    import schemathesis

    with Running(SAYS_ONE, limits={"max_tokens": 8}) as running:
        schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) == 5
        both = list(schemathesis.GenerationMode)  # as the document says, and against it
        asked = [
            (op, mode) for op in operations for mode in both[: 2 if op.method == "post" else 1]
        ]
        for operation, mode in asked:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=6, deadline=None, derandomize=True, database=None,
                      suppress_health_check=list(HealthCheck))  # fmt: skip
            def check(case):
                assert case.call().status_code < 500, case.body

            check()
        assert running.chat().json()["choices"][0]["message"]["content"] == "one"
        assert not any("Traceback" in line or "left out" in line for line in running.lines)


# ---------------------------------------------------------------- page, documents, log


def test_the_page_runs_its_own_scripts_and_no_other(one):
    response = one.http.get("/")
    policy = dict(
        rule.split(" ", 1) for rule in response.headers["content-security-policy"].split("; ")
    )
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["default-src"] == "'none'" and "unsafe" not in str(policy)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert one.http.get("/chat.js").headers["content-type"].startswith("text/javascript")
    assert one.http.get("/../server.py").status_code == 404


def test_documents(one):
    paths = one.http.get("/openapi.json").json()["paths"]
    responses = paths["/v1/chat/completions"]["post"]["responses"]
    assert {"200", "4XX", "5XX"} == set(responses)
    page = one.http.get("/docs")
    assert "max_completion_tokens" in page.text and "<script" not in page.text


def test_health(one):
    one.chat()
    health = one.http.get("/health").json()
    assert health["status"] == "ok" and health["in_flight"] == health["running"] == 0
    assert health["tokens_per_second"] >= 0


def test_a_failed_engine_is_told_of_and_nobody_waits_for_ever(capsys):
    def broken():
        raise RuntimeError(f"{TEXT} in a message")

    with Running(SAYS_ONE) as running:
        assert running.chat().is_success
        running.engine.engine.step = broken
        assert running.chat(TEXT).status_code == 503
        assert running.chat(TEXT, stream=True).status_code == 503
        health = running.http.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
    out = "".join(capsys.readouterr()) + "\n".join(running.lines)
    assert "RuntimeError" in out and TEXT not in out


@pytest.mark.parametrize("wanted", [False, True], ids=["quiet", "asked"])
def test_the_log_holds_messages_only_if_asked(wanted):
    with Running(SAYS_ONE, state={"log_messages": wanted}) as running:
        running.chat(TEXT)
        running.chat(TEXT, stream=True)
        running.chat(TEXT, temperature=-1)
        running.http.get(f"/{TEXT}?q={TEXT}", headers={"user-agent": TEXT})
        lines = running.lines
    assert sum("tokens read" in line for line in lines) == 2
    assert sum(" /v1/chat/completions 200 " in line for line in lines) == 2
    assert sum(TEXT in line for line in lines) == (2 if wanted else 0)


def test_validation_message_names_the_deepest_error():
    place = ("body", "messages", 0, "content", "list[Part]", 1, "type")
    found = [
        {"type": "x", "loc": ("body", "stop", "constrained-str"), "msg": "a"},
        {"type": "x", "loc": place, "msg": "b"},
    ]
    assert validation_message(found) == "messages.0.content.1.type: b"


# ---------------------------------------------------------------- many at once

LENGTH = 12  # tokens of every stream


async def ask(address, letter: str, leaves: bool) -> str | None:
    """What a stream said that began with `letter`; None if the client left in the middle."""
    body = json.dumps({"prompt": letter, "max_tokens": LENGTH, "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    text = ""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    try:
        assert b" 200 " in await reader.readline()
        async for line in reader:
            if leaves and len(text) >= 5:
                return None
            if line == b"data: [DONE]\n":
                return text
            if line.startswith(b"data: "):
                text += json.loads(line[6:])["choices"][0]["text"]
        raise AssertionError(f"a stream ended without [DONE] after {len(text)} letters")
    finally:
        writer.transport.abort()


@pytest.mark.slow
def test_200_streams_a_third_cut_off_none_lost_none_mixed_up():
    """Every prompt leads round a circle of its own letters; what is said twice is wrong twice."""
    circles = [
        a + b + c + a for a, b, c in zip(*[iter("abcdefghijklmnopqrstuvwx")] * 3, strict=True)
    ]
    starts = [circle[0] for circle in circles]

    def expected(letter: str) -> str:
        circle = circles[starts.index(letter)][1:]
        return (circle * LENGTH)[:LENGTH]

    async def wave() -> list:
        asked = [ask(running.address, starts[i % 8], i % 3 == 0) for i in range(200)]
        return await asyncio.gather(*asked)

    with Running(*circles) as running:
        for _ in range(2):
            said = asyncio.run(wave())
            for i, text in enumerate(said):
                assert text == (None if i % 3 == 0 else expected(starts[i % 8]))
            running.until(lambda health: health["in_flight"] == health["running"] == 0)
            gc.collect()  # memory is flat: nothing of a call stays
            assert [one for one in gc.get_objects() if type(one) is Completion] == []
        assert not running.engine._requests and not running.engine._streams
