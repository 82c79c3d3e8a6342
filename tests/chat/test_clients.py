"""What people's clients send, and what happens on the way: each input with what it must get.

The model says "one" to whatever it is asked, so a 200 is a whole answer.
"""

import json
import socket

import pytest
from test_server import HI, SAYS_ONE, SAYS_SUM, TOKENIZER, Running, events

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "weather"}}
NULLS = dict.fromkeys(
    ["model", "max_tokens", "max_completion_tokens", "n", "stop", "seed", "stream_options", "top_k",
     "temperature", "top_p", "min_p", "repetition_penalty", "logprobs", "top_logprobs", "tools",
     "tool_choice", "response_format", "logit_bias", "user", "frequency_penalty", "audio",
     "presence_penalty", "modalities", "functions", "function_call", "stream"]
)  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with Running(SAYS_ONE, origins=["https://App.example/"]) as running:
        yield running
        assert not any("left out" in line for line in running.lines)  # nothing failed


def check(response, expected):
    """expected: "one", the answer; or a status with a part of the message."""
    if expected == "one":
        assert response.status_code == 200, response.text
        assert response.json()["choices"][0]["message"]["content"] == "one"
    else:
        status, part = expected
        error = response.json()["error"]
        assert (response.status_code, set(error)) == (status, {"message", "type", "code"})
        assert part in error["message"], error


# ---------------------------------------------------------------- bodies

BODIES = {
    # what clients send of their own accord, recorded from them or copied from their documents
    "huggingface_hub": ({"model": "dummy", "stream": False}, "one"),
    "langchain": ({"model": "tiny", "stream": False, "temperature": 0.7, "n": 1}, "one"),
    "langchain's endless": ({"max_completion_tokens": -1}, "one"),
    "langchain's tools": ({"tools": [TOOL], "parallel_tool_calls": True}, "one"),
    "llama index": ({"model": "tiny", "temperature": 0.1, "stream": False}, "one"),
    "litellm and aider": ({"temperature": 0, "extra_body": {}, "metadata": {}}, "one"),
    "continue": (
        {"max_tokens": 4096, "stop": ["<|endoftext|>"] * 20, "frequency_penalty": 0, "top_p": 1,
         "presence_penalty": 0, "prediction": None},
        "one",
    ),
    "open webui": (
        {"chat_id": "1", "session_id": "2", "features": {"web": False}, "tools": [], "user": "u",
         "max_tokens": None, "stop": None, "frequency_penalty": 0},
        "one",
    ),
    "llama.cpp's page": (
        {"max_tokens": -1, "samplers": "edkypmxt", "dynatemp_range": 0, "dynatemp_exponent": 1,
         "top_k": 40, "min_p": 0.05, "typical_p": 1, "xtc_probability": 0, "repeat_penalty": 1,
         "dry_multiplier": 0, "timings_per_token": True, "reasoning_format": "auto"},
        "one",
    ),
    "llama.cpp's length": ({"n_predict": -1, "cache_prompt": True, "seed": -1}, "one"),
    "lm studio": ({"max_tokens": -1, "temperature": 0.7}, "one"),
    "vllm": (
        {"top_k": -1, "best_of": 1, "use_beam_search": False, "ignore_eos": False, "min_tokens": 0,
         "skip_special_tokens": True, "stop_token_ids": [], "echo": False, "length_penalty": 1.0,
         "include_stop_str_in_output": False, "guided_json": None, "add_generation_prompt": True},
        "one",
    ),
    "chatdev": ({"logit_bias": {}, "stop": None, "user": "", "max_tokens": 15821}, "one"),
    "every field null": (NULLS, "one"),
    "newer fields": (
        {"store": True, "service_tier": "auto", "reasoning_effort": "low", "verbosity": "low",
         "safety_identifier": "x", "prompt_cache_key": "y", "modalities": ["text"]},
        "one",
    ),
    # values that mean "nothing" to somebody
    "an empty stop": ({"stop": ""}, "one"),
    "an empty stop in a list": ({"stop": [""]}, "one"),
    "null in a list of stops": ({"stop": [None, "x"]}, "one"),
    "no stops": ({"stop": []}, "one"),
    "top_p 0": ({"top_p": 0}, "one"),
    "top_k 0": ({"top_k": 0}, "one"),
    "min_p 0": ({"min_p": 0.0}, "one"),
    "seed -1": ({"seed": -1}, "one"),
    "seed 0": ({"seed": 0}, "one"),
    "text asked for": ({"response_format": {"type": "text"}}, "one"),
    "usage null": ({"stream_options": {"include_usage": None}}, "one"),
    "stream options without a stream": ({"stream_options": {"include_usage": True}}, "one"),
    # kinds of numbers
    "numbers as text": ({"max_tokens": "400", "temperature": "0.5"}, "one"),
    "whole floats": ({"max_tokens": 400.0, "seed": 1.0, "top_k": 5.0, "n": 1.0}, "one"),
    "the largest seed": ({"seed": 2**63 - 1}, "one"),
    "a seed too large": ({"seed": 2**64}, (400, "seed")),
    "a seed in words": ({"seed": "abc"}, (400, "seed")),
    "half a token": ({"max_tokens": 4.5}, (400, "max_tokens")),
    "no token": ({"max_tokens": 0}, (400, "max_tokens is 0")),
    "-2 tokens": ({"max_tokens": -2}, (400, "max_tokens")),
    "more tokens than there are": ({"max_tokens": 10**12}, (400, "max_tokens")),
    "no answers": ({"n": 0}, (400, "n:")),
    "temperature in a list": ({"temperature": [1]}, (400, "temperature")),
    "a negative temperature": ({"temperature": -0.1}, (400, "temperature")),
    "a stop of a number": ({"stop": 5}, (400, "stop")),
    "too many stops": ({"stop": ["a"] * 65}, (400, "stop")),
    "too long a stop": ({"stop": "a" * 201}, (400, "stop")),
    "21 log-probabilities": ({"logprobs": True, "top_logprobs": 21}, (400, "top_logprobs")),
    "log-probabilities by number": ({"logprobs": 5}, (400, "logprobs")),
    # tools
    "auto": ({"tools": [TOOL], "tool_choice": "auto"}, "one"),
    "none": ({"tools": [TOOL], "tool_choice": "none"}, "one"),
    "required": ({"tools": [TOOL], "tool_choice": "required"}, (400, "tool_choice")),
    "any": ({"tools": [TOOL], "tool_choice": "any"}, (400, "tool_choice")),
    "named": ({"tools": [TOOL], "tool_choice": NAMED}, (400, "tool_choice")),
    "functions": ({"functions": [TOOL["function"]], "function_call": "auto"}, "one"),
    "a named function": (
        {"functions": [TOOL["function"]], "function_call": {"name": "weather"}},
        (400, "function_call"),
    ),
    # what cannot be obeyed
    "json": ({"response_format": {"type": "json_object"}}, (400, "response_format")),
    "json as a word": ({"response_format": "json"}, (400, "response_format")),
    "a schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        (400, "response_format"),
    ),
    "guided": ({"guided_choice": ["yes", "no"]}, (400, "guided_choice")),
    "a grammar": ({"grammar": "root ::= x"}, (400, "grammar")),
    "a bias": ({"logit_bias": {"5": -100}}, (400, "logit_bias")),
    "speech": ({"modalities": ["text", "audio"]}, (400, "modalities")),
    "no end": ({"ignore_eos": True}, (400, "ignore_eos")),
    "the best of 3": ({"best_of": 3}, (400, "best_of")),
    "a penalty": ({"presence_penalty": 1}, (400, "repetition_penalty is")),
    "another model": ({"model": "gpt-3.5-turbo"}, (404, "there is tiny")),
    "truncation by number": ({"truncation": 1}, (400, "truncation")),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_a_body(server, name):
    fields, expected = BODIES[name]
    check(server.http.post("/v1/chat/completions", json={"messages": HI, **fields}), expected)


def user(content):
    return {"role": "user", "content": content}


def system(content, role="system"):
    return {"role": role, "content": content}


def assistant(content, **fields):
    return {"role": "assistant", "content": content, **fields}


CALL = {"id": "c1", "type": "function", "function": {"name": "w", "arguments": "{}"}}
MESSAGES = {
    "a later system text": ([system("a"), *HI, assistant("b"), system("c"), *HI], "one"),
    "a developer in between": ([*HI, system("a", "developer"), *HI], "one"),
    "a system text alone": ([system("a")], "one"),
    "a system text last": ([*HI, system("a")], "one"),
    "after an answer": ([*HI, assistant("b"), system("c")], "one"),
    "a greeting first": ([assistant("Hello!"), *HI], "one"),
    "system and greeting": ([system("a"), assistant("Hello!"), *HI], "one"),
    "two questions": ([*HI, *HI], "one"),
    "two answers": ([*HI, assistant("a"), assistant("b"), *HI], "one"),
    "names": ([{**HI[0], "name": "Ada"}], "one"),
    "no content": ([{"role": "user"}], "one"),
    "null content": ([user(None)], "one"),
    "empty content": ([user("")], "one"),
    "no parts": ([user([])], "one"),
    "a cached part": ([user([{"type": "text", "text": "x", "cache_control": {"a": 1}}])], "one"),
    "what the Python client dumps": (
        [*HI, assistant("a", refusal=None, annotations=None, audio=None, function_call=None,
                        tool_calls=None), *HI], "one"),
    "a call and its result": (
        [*HI, assistant(None, tool_calls=[CALL]),
         {"role": "tool", "tool_call_id": "c1", "content": "3"}, *HI], "one"),
    "a call without a result": ([*HI, assistant(None, tool_calls=[CALL]), *HI], "one"),
    "a function's result": (
        [*HI, assistant(None, function_call={"name": "w", "arguments": "{}"}),
         {"role": "function", "name": "w", "content": "3"}, *HI], "one"),
    "a function nobody called": ([*HI, {"role": "function", "name": "w", "content": "3"}],
                                 (400, "message 2 is the result")),
    "a result with another id": ([*HI, assistant("x"), {"role": "tool", "tool_call_id": "c9",
                                 "content": "3"}], (400, "'c9'")),
    "a picture": ([user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}])],
                  (400, "messages.0.content.0.type")),
    "a sound": ([user([{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}])],
                (400, "messages.0.content.0.type")),
    "a file": ([user([{"type": "text", "text": "x"}, {"type": "file", "file": {}}])],
               (400, "messages.0.content.1.type")),
    "parts without a type": ([user([{"text": "x"}])], (400, "messages.0.content.0.type")),
    "a part that is text": ([user(["x"])], (400, "messages.0.content")),
    "content that is a number": ([user(5)], (400, "messages.0.content")),
    "content that is a dictionary": ([user({"text": "x"})], (400, "messages.0.content")),
    "another role": ([{"role": "bot", "content": "x"}], (400, "messages.0.role")),
    "no role": ([{"content": "x"}], (400, "messages.0.role")),
    "no messages": ([], (400, "messages")),
    "one message, not a list": (HI[0], (400, "messages")),
    "a message that is text": (["Hi"], (400, "messages.0")),
    "null for messages": (None, (400, "messages")),
    "lone surrogates": ([user("\ud83d")], "one"),
    "a zero character": ([user("a\x00b")], "one"),
    "all of Unicode's ends": ([user("\U0010ffff\ufeff\u2028é\u0301")], "one"),
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(server, name):
    messages, expected = MESSAGES[name]
    body = json.dumps({"messages": messages})  # which escapes what UTF-8 cannot say
    check(server.http.post("/v1/chat/completions", content=body), expected)


GOOD = json.dumps({"messages": HI})
BYTES = {
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD.encode(), "one"),
    "UTF-16": (GOOD.encode("utf-16"), "one"),
    "UTF-32": (GOOD.encode("utf-32"), "one"),
    "Latin-1": (GOOD.replace("Hi", "é").encode("latin-1"), (400, "not JSON in UTF-8")),
    "NaN": (GOOD[:-1].encode() + b', "temperature": NaN}', (400, "temperature")),
    "Infinity": (GOOD[:-1].encode() + b', "max_tokens": Infinity}', (400, "max_tokens")),
    "1e999": (GOOD[:-1].encode() + b', "temperature": 1e999}', (400, "temperature")),
    "5,000 digits": (GOOD[:-1].encode() + b', "seed": ' + b"9" * 5000 + b"}", (400, "not JSON")),
    "twice the same key": (b'{"messages": [], ' + GOOD[1:].encode(), "one"),
    "100,000 lists": (b'{"messages": ' + b"[" * 100_000, (400, "not JSON")),
    "5,000 lists": (b'{"metadata": ' + b"[" * 5000 + b"]" * 5000 + b", " + GOOD[1:].encode(),
                    (400, "not JSON")),
    "a list": (b"[]", (400, "body")),
    "null": (b"null", (400, "body")),
    "a string": (b'"x"', (400, "body")),
    "nothing": (b"", (400, "body")),
    "more than JSON": (GOOD.encode() + b"x", (400, f"not JSON: Extra data, character {len(GOOD)}")),
    "half of it": (GOOD.encode()[:-1], (400, "not JSON")),
    "single quotes": (b"{'messages': []}", (400, "not JSON")),
    "a closing comma": (GOOD[:-1].encode() + b",}", (400, "not JSON")),
    "a form": (b"messages=Hi&model=tiny", (400, "not JSON")),
    "compressed": (b"\x1f\x8b\x08\x00", (400, "not JSON in UTF-8")),
}  # fmt: skip


@pytest.mark.parametrize("name", BYTES)
def test_bytes(server, name):
    body, expected = BYTES[name]
    check(server.http.post("/v1/chat/completions", content=body), expected)


HEADERS = {
    "no type": ({"content-type": ""}, "one"),
    "curl -d": ({"content-type": "application/x-www-form-urlencoded"}, "one"),
    "text": ({"content-type": "text/plain;charset=UTF-8"}, "one"),
    "another charset": ({"content-type": "application/json; charset=latin-1"}, "one"),
    "gzip": ({"content-encoding": "gzip"}, (415, "compressed")),
    "brotli": ({"Content-Encoding": "br"}, (415, "compressed")),
    "identity": ({"content-encoding": "identity"}, "one"),
    "an answer in gzip": ({"accept-encoding": "gzip"}, "one"),
    "an answer in HTML": ({"accept": "text/html"}, "one"),
    "a key that nobody asked for": ({"authorization": "Bearer sk-1"}, "one"),
    "another way to sign in": ({"authorization": "Basic eDp5"}, "one"),
    "a proxy's": ({"x-forwarded-for": "1.2.3.4", "x-forwarded-prefix": "/llm"}, "one"),
    "another site": ({"origin": "https://evil.example"}, (403, "--allow-origin")),
    "a file": ({"origin": "null"}, (403, "--allow-origin")),
    "the allowed site": ({"origin": "https://app.example"}, "one"),
    "the allowed site in http": ({"origin": "http://app.example"}, (403, "--allow-origin")),
    "bytes that are no text": ({"user-agent": b"\xff\xfe"}, "one"),
    "an organization": ({"openai-organization": "o", "openai-beta": "assistants=v2"}, "one"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(server, name):
    headers, expected = HEADERS[name]
    check(server.http.post("/v1/chat/completions", content=GOOD, headers=headers), expected)


@pytest.mark.parametrize(
    "given, status",
    [("bearer sesame", 200), ("BEARER sesame", 200), ("Bearer  sesame", 200),
     ("Bearersesame", 401), ("Basic sesame", 401), ("sesame", 401),
     ("Bearer Sesame", 401), ("Bearer sesame x", 401), ("Bearer s\u00e9same", 401), ("", 401)],
)  # fmt: skip
def test_a_key(with_key, given, status):
    headers = {"authorization": given.encode("latin-1")}
    for path in ("/v1/models", "//v1/models", "/v1//models/"):
        assert with_key.http.get(with_key.url + path, headers=headers).status_code == status


@pytest.fixture(scope="module")
def with_key():
    with Running(SAYS_ONE, api_key="sesame\n") as running:
        yield running


# The headers of OpenAI's JavaScript client (openai 7.59 under Node 20), as a browser asks for them.
STAINLESS = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os," + (
    "x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,"
    "x-stainless-runtime-version,x-stainless-timeout"
)


@pytest.mark.parametrize("origin, allowed", [("https://app.example", True), ("https://x.y", False)])
@pytest.mark.parametrize("headers", [STAINLESS, "x-anything, X-Other", "authorization"])
@pytest.mark.parametrize("more", [{}, {"access-control-request-private-network": "true"}])
def test_a_preflight(server, origin, allowed, headers, more):
    asked = {"origin": origin, "access-control-request-method": "POST", **more}
    asked["access-control-request-headers"] = headers
    response = server.http.options("/v1/chat/completions", headers=asked)
    assert response.is_success == allowed
    assert response.headers.get("access-control-allow-origin") == (origin if allowed else None)
    if allowed:
        assert response.headers["access-control-allow-headers"] == headers


# ---------------------------------------------------------------- addresses and methods


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "//v1/models", 200),
        ("GET", "/v1//models/", 200),
        ("GET", "/v1/models/tiny/", 200),
        ("GET", "/v1/models?limit=5", 200),
        ("GET", "/v1/%6dodels", 200),
        ("GET", "/health/", 200),
        ("GET", "//", 200),
        ("GET", "/?theme=dark", 200),
        ("HEAD", "/", 200),
        ("HEAD", "/health", 200),
        ("HEAD", "/v1/models", 200),
        ("HEAD", "/v1/nothing", 404),
        ("GET", "/chat/completions", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/embeddings", 404),
        ("GET", "/V1/models", 404),
        ("GET", "/%ff%00", 404),
        ("GET", "/" + "a" * 5000, 404),
        ("GET", "/v1/models/..%2f..%2fetc", 404),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
        ("POST", "/health", 405),
        ("TRACE", "/health", 405),
        ("BREW", "/health", 405),
    ],
)
def test_an_address(server, method, path, status):
    response = server.http.request(method, server.url + path)
    assert response.status_code == status
    if method == "HEAD":
        assert response.content == b"" and int(response.headers["content-length"]) > 0
    elif status == 404:
        assert "/v1" in response.json()["error"]["message"] or "etc" in path
    elif status == 405:
        assert response.headers["allow"] and response.json()["error"]["message"]


def post(head: str, body: bytes) -> bytes:
    return f"POST /v1/chat/completions {head}\r\n\r\n".encode() + body


LENGTH = f"Content-Length: {len(GOOD)}"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD.encode())
CLOSE = "HTTP/1.1\r\nHost: x\r\nConnection: close"
WIRE = {
    "HTTP/1.0": (post(f"HTTP/1.0\r\n{LENGTH}", GOOD.encode()), 200),
    "HTTP/1.0 with a host": (post(f"HTTP/1.0\r\nHost: x\r\n{LENGTH}", GOOD.encode()), 200),
    "chunks": (post(f"{CLOSE}\r\nTransfer-Encoding: chunked", CHUNKS), 200),
    "100-continue": (post(f"{CLOSE}\r\nExpect: 100-continue\r\n{LENGTH}", GOOD.encode()), 200),
    "no host": (post(f"HTTP/1.1\r\nConnection: close\r\n{LENGTH}", GOOD.encode()), 400),
    "a negative length": (post(f"{CLOSE}\r\nContent-Length: -5", b""), 400),
    "no length": (post(CLOSE, b""), 400),
    "wrong chunks": (post(f"{CLOSE}\r\nTransfer-Encoding: chunked", b"zz\r\nx\r\n"), 400),
    "no HTTP": (b"hello\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", WIRE)
def test_on_the_wire(server, name):
    sent, status = WIRE[name]
    with socket.create_connection(server.address, timeout=20) as connection:
        connection.sendall(sent)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    heads = [line for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert heads[-1].startswith(b"HTTP/1.1 %d " % status), received
    assert (b'"content":"one"' in received) == (status == 200)


def test_a_client_that_leaves_in_the_middle_of_its_body(server):
    for sent in (post(f"{CLOSE}\r\n{LENGTH}", b'{"mess'), b"POST /v1/chat", b""):
        with socket.create_connection(server.address, timeout=20) as connection:
            connection.sendall(sent)
    check(server.chat(), "one")
    assert server.until(lambda health: health["in_flight"] == 0)


# ---------------------------------------------------------------- answers as clients read them


def test_log_probabilities_of_an_answer_that_ends_by_itself(server):
    """The stop token has a log-probability, too, and is no part of the answer."""
    for stream in (False, True):
        response = server.chat(logprobs=True, top_logprobs=2, stream=stream)
        if stream:
            chunks = [chunk["choices"][0] for chunk in events(response)[:-1]]
            found = [one for c in chunks for one in (c["logprobs"] or {"content": []})["content"]]
        else:
            found = response.json()["choices"][0]["logprobs"]["content"]
        assert [one["token"] for one in found] == ["o", "n", "e"]
        assert [len(one["top_logprobs"]) for one in found] == [2, 2, 2]


def test_several_answers_with_usage_in_a_stream(server):
    response = server.chat(n=3, stream=True, stream_options={"include_usage": True})
    *chunks, last, done = events(response)
    texts = [""] * 3
    for chunk in chunks:
        [choice] = chunk["choices"]
        assert chunk["usage"] is None
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["one"] * 3 and done == "[DONE]"
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 9)


@pytest.mark.parametrize("fields", [{}, {"tools": [TOOL]}, {"tools": [TOOL], "n": 2}])
def test_the_models_own_calls_are_nobody_elses(fields):
    """tool_calls would make a client's loop look for a tool of that name, and never end."""
    with Running(*SAYS_SUM) as running:
        answer = running.chat(**fields).json()
        chunks = events(running.chat(stream=True, **fields))[:-1]
    for choice in answer["choices"]:
        assert "tool_calls" not in choice["message"] and choice["finish_reason"] == "stop"
        assert [part["type"] for part in choice["message"]["nanochat"]["parts"]] == [
            "text", "python", "python_output", "text",
        ]  # fmt: skip
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert not any("tool_calls" in delta for delta in deltas)
    calls = [d["nanochat"]["text"] for d in deltas if d.get("nanochat", {}).get("type") == "python"]
    assert calls == ["1+2"] * len(answer["choices"])


@pytest.mark.parametrize(
    "fields, tokens",
    [({}, 16), ({"max_tokens": None}, 16), ({"max_tokens": -1}, 40), ({"n_predict": 5}, 5),
     ({"max_tokens": 500}, 40), ({"prompt": ["a", "b"], "max_tokens": 3}, 6)],
)  # fmt: skip
def test_lengths_of_plain_completions(fields, tokens):
    with Running("abcdefgha", limits={"max_tokens": 40}) as running:
        answer = running.http.post("/v1/completions", json={"prompt": "a", **fields}).json()
    assert answer["usage"]["completion_tokens"] == tokens


@pytest.mark.parametrize(
    "fields, expected",
    [({"echo": True}, "echo"), ({"suffix": "x"}, "suffix"), ({"prompt": []}, "prompt"),
     ({"prompt": [[]]}, None), ({"prompt": ""}, None), ({"prompt": None}, "prompt"),
     ({"prompt": [1.5]}, "prompt"), ({"prompt": [-1]}, "ids from -1"),
     ({"prompt": [10**9]}, "ids from"), ({"prompt": {"text": "x"}}, "prompt"),
     ({"prompt": ["a"] * 17}, "17 answers"), ({"prompt": [TOKENIZER.bos, 65]}, None),
     ({"logprobs": 21}, "logprobs"), ({"logprobs": 0}, None), ({"prompt": "x" * 500}, "256")],
)  # fmt: skip
def test_plain_prompts(server, fields, expected):
    response = server.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2, **fields})
    if expected is None:
        assert response.json()["usage"]["completion_tokens"] == 2
    else:
        assert response.status_code == 400 and expected in response.json()["error"]["message"]
