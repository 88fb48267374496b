"""What callers may write, and what is refused before anything is sent."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import memserve.client
from memserve.client import AsyncClient, Client, Message, Role, Sampling, TlsFiles, UsageError
from memserve.client.arguments import strings
from memserve.client.wire.inference import generate_request


def test_a_string_where_a_list_is_meant_is_a_list_of_one() -> None:
    asked = generate_request("b", namespaces="notes", stop="Lantern")
    assert asked == generate_request("b", namespaces=["notes"], stop=["Lantern"])
    assert asked == generate_request("b", namespaces=["notes"], sampling=Sampling(0, stop=("Lantern",)))
    assert strings("keywords", "harbour") == ["harbour"]
    assert strings("keywords", (word for word in ("a", "b"))) == ["a", "b"]


def test_turns_are_messages_or_mappings_one_or_many() -> None:
    question = generate_request("b")
    assert generate_request(Message(Role.USER, "b")) == question
    assert generate_request({"role": "user", "content": "b"}) == question
    assert generate_request([{"role": "user", "content": "b"}]) == question
    assert generate_request([Message("user", "b")]) == question  # type: ignore[arg-type]


def test_no_sampling_means_the_gateways_defaults() -> None:
    assert generate_request("b") == generate_request("b", sampling=Sampling(max_tokens=0))
    assert generate_request("b", temperature=0.5).sampling.max_tokens == 0


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: generate_request(["b"]), "messages[0]"),  # type: ignore[list-item]
        (lambda: generate_request([{"role": "user"}]), "messages[0]"),
        (lambda: generate_request([{"role": "tool", "content": "b"}]), "messages[0].role"),
        (lambda: generate_request([{"role": "user", "content": ["b"]}]), "messages[0].content"),  # type: ignore
        (lambda: generate_request("b", namespaces=b"notes"), "namespaces"),  # type: ignore[arg-type]
        (lambda: generate_request("b", namespaces=7), "namespaces"),  # type: ignore[arg-type]
        (lambda: generate_request("b", stop=("a", 7)), "stop"),  # type: ignore[arg-type]
        (lambda: generate_request("b", sampling=Sampling(7, stop=("a", 7))), "stop"),  # type: ignore[arg-type]
        (lambda: strings("keywords", {"a": "b"}), "keywords"),
        (lambda: Client(timeout_s=0), "timeout_s"),
        (lambda: AsyncClient(timeout_s=float("nan")), "timeout_s"),
        (lambda: Client("ftp://gateway"), "address"),
        (lambda: Client(api_key="line\n"), "api_key"),
        (lambda: Client(tls=TlsFiles(ca="/nowhere/ca.pem")), "tls.ca"),
        (lambda: AsyncClient(tls=TlsFiles(certificate=Path("c.pem"))), "tls"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_its_field(make: Callable[[], Any], field: str) -> None:
    with pytest.raises(UsageError) as refused:
        make()
    assert refused.value.field == field


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 7},
        {"temperature": 0.0},
        {"top_p": 0.5},
        {"seed": 0},
        {"stop": ()},
        {"logprobs": False},
        {"min_tokens": 0},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_field_beside_the_sampling_that_has_it_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refused:
        generate_request("b", sampling=Sampling(max_tokens=7), **fields)
    assert refused.value.field == next(iter(fields))


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_generate_and_stream_spell_out_the_same_arguments(client: type) -> None:
    expected = list(inspect.signature(generate_request).parameters.values())
    for method in (client.generate, client.stream):  # type: ignore[attr-defined]
        signature = inspect.signature(method)
        assert list(signature.parameters.values())[1:] == expected
    assert set(Sampling.__dataclass_fields__) <= {parameter.name for parameter in expected}


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_all_that_a_caller_touches_is_exported(client: type) -> None:
    exported = set(memserve.client.__all__)
    owner = client(timeout_s=1.0)
    words = {
        "str",
        "int",
        "float",
        "bool",
        "bytes",
        "dict",
        "list",
        "tuple",
        "None",
        "Path",
        "Self",
        "TracebackType",
        "type",
    }
    words |= {
        "Any",
        "Iterable",
        "Sequence",
        "Mapping",
        "Collection",
        "Generator",
        "AsyncGenerator",
        "BaseException",
        "Connection",
    }
    for calls in (owner, owner.modules, owner.activation):
        for name, method in inspect.getmembers(calls, inspect.ismethod):
            if name.startswith("_") and name != "__init__":
                continue
            for annotation in method.__annotations__.values():
                names = set("".join(c if c.isalnum() else " " for c in annotation).split())
                assert names <= exported | words, (name, names - exported - words)
