"""Programs that people already use, with the server: their own clients, one question each.

Those that the dev extra does not install are skipped where they are not there; docs/publishing.md
says what was run with which version.
"""

import pytest
from lm_eval_task import exact_match
from test_server import HI, SAYS_ONE, Running


@pytest.fixture(scope="module")
def server():
    with Running(SAYS_ONE) as running:
        yield running


def test_huggingface_hubs_client(server):
    from huggingface_hub import InferenceClient

    client = InferenceClient(base_url=server.url, api_key="none")
    whole = client.chat_completion(HI, max_tokens=9)
    assert whole.choices[0].message.content == "one" and whole.usage.completion_tokens == 3
    options = {"stream": True, "stream_options": {"include_usage": True}}
    parts = list(client.chat.completions.create(messages=HI, **options))
    said = [part.choices[0].delta.content or "" for part in parts if part.choices]
    assert "".join(said) == "one" and parts[-1].usage.completion_tokens == 3
    by_model = InferenceClient(model=server.url).chat_completion(HI)
    assert by_model.choices[0].message.content == "one"


def test_langchains_client(server):
    openai = pytest.importorskip("langchain_openai", reason="needs langchain-openai")
    settings = {"base_url": f"{server.url}/v1", "api_key": "none", "model": "tiny"}
    model = openai.ChatOpenAI(**settings, stream_usage=True)
    answer = model.invoke([("system", "Be brief."), ("human", "Hi")])
    assert answer.content == "one" and answer.usage_metadata["output_tokens"] == 3
    assert "".join(part.content for part in model.stream("Hi")) == "one"
    assert [a.content for a in model.batch(["Hi", "Ho"])] == ["one", "one"]


def test_llama_indexs_client(server):
    like = pytest.importorskip("llama_index.llms.openai_like", reason="needs llama-index")
    from llama_index.core.llms import ChatMessage

    settings = {"api_base": f"{server.url}/v1", "api_key": "none", "model": "tiny"}
    model = like.OpenAILike(**settings, is_chat_model=True, context_window=256)
    asked = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="H")]
    assert model.chat(asked).message.content == "one"
    assert "".join(part.delta or "" for part in model.stream_chat(asked)) == "one"


@pytest.mark.slow
def test_lm_evals_client(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    address = {"model": "tiny", "base_url": f"{server.url}/v1/chat/completions"}
    how = {"model": "local-chat-completions", "model_args": address}
    assert exact_match(tmp_path, {"Hi": "one", "Ho": "two"}, 16, **how) == 0.5
