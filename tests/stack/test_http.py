"""The HTTP port of the whole of memserve, as other people's programs use it."""

from __future__ import annotations

import json
import subprocess

import openai
import pytest
from langchain_openai import ChatOpenAI

from memserve.client import Client
from memserve.config import at
from memserve.embedded import Stack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]
QUESTION = "What is the code of Amber Lantern?"
SCHEMA = {
    "type": "object",
    "properties": {"code": {"type": "integer", "minimum": 0, "maximum": 9999}, "sure": {"type": "boolean"}},
    "required": ["code", "sure"],
    "additionalProperties": False,
}


def base_url(stack: Stack) -> str:
    return f"http://{at(stack.settings.host, stack.settings.http_port)}/v1"


@pytest.fixture
def official(stack: Stack, client: Client) -> openai.OpenAI:
    """client: waits until the workers are ready."""
    return openai.OpenAI(base_url=base_url(stack), api_key="none")


def test_the_official_client_recalls_streams_and_counts_what_was_cached(
    official: openai.OpenAI, client: Client
) -> None:
    model = official.models.list().data[0].id
    client.remember("http", "The code of Amber Lantern is 4071.", source="the manual")
    extra = {"memserve": {"namespaces": ["http"]}}
    question = [{"role": "user", "content": QUESTION}]
    answers = [
        official.chat.completions.create(
            model=model, messages=question, temperature=0, max_tokens=24, extra_body=extra
        )
        for _ in range(2)
    ]
    receipt = answers[0].model_dump()["memserve"]
    assert receipt["passages"][0]["source"] == "the manual"
    assert "4071" in (answers[0].choices[0].message.content or "")
    chunks = list(
        official.chat.completions.create(
            model=model, messages=question, temperature=0, max_tokens=24, extra_body=extra, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answers[0].choices[0].message.content
    usage = answers[1].usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == sum(
        answers[1].model_dump()["memserve"]["cached_tokens"].values()
    )


def test_an_answer_is_json_of_the_schema(official: openai.OpenAI) -> None:
    model = official.models.list().data[0].id
    for number in range(3):
        answered = official.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": f"{QUESTION} {number}"}],
            max_tokens=60,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "code", "schema": SCHEMA, "strict": True},
            },
        )
        assert answered.choices[0].finish_reason == "stop", answered.choices[0].message.content
        found = json.loads(answered.choices[0].message.content or "")
        assert found.keys() == {"code", "sure"}
        assert 0 <= found["code"] <= 9999


def test_a_module_is_a_model_and_texts_become_vectors(official: openai.OpenAI) -> None:
    names = [model.id for model in official.models.list()]
    assert f"{names[0]}:harbour@live" in names
    answered = official.chat.completions.create(
        model=f"{names[0]}:harbour",
        messages=[{"role": "user", "content": "Who is the captain?"}],
        max_tokens=8,
    )
    assert answered.model_dump()["memserve"]["modules"][0]["name"] == "harbour"
    vectors = official.embeddings.create(model="all-MiniLM-L6-v2", input=["a harbour", "a port", "a poem"])
    first, second, third = (each.embedding for each in vectors.data)

    def likeness(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert likeness(first, second) > likeness(first, third)


def test_a_framework_chats_and_streams(stack: Stack, official: openai.OpenAI) -> None:
    model = official.models.list().data[0].id
    chat = ChatOpenAI(base_url=base_url(stack), api_key="none", model=model, temperature=0, max_tokens=16)  # type: ignore[arg-type,call-arg]
    whole = chat.invoke([("system", "Answer briefly."), ("user", QUESTION)])
    pieces = [piece.content for piece in chat.stream([("system", "Answer briefly."), ("user", QUESTION)])]
    assert "".join(map(str, pieces)) == whole.content
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0


def test_curl_gets_an_answer(stack: Stack, official: openai.OpenAI) -> None:
    model = official.models.list().data[0].id
    body = json.dumps({"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "Hello."}]})
    command = ["curl", "-sS", f"{base_url(stack)}/chat/completions", "-H", "content-type: application/json"]
    done = subprocess.run(
        [*command, "-d", body], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert 1 <= json.loads(done.stdout)["usage"]["completion_tokens"] <= 4
