"""An endpoint in place of a model: the same contract, and everything that it may answer wrongly."""

import datetime
import logging
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memserve.config import Settings
from memserve.errors import EmbedderUnavailable, InvalidField
from memserve.memory.texts.embedder_files import Prompts
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.encoders.embedder import Embedder
from memserve.memory.texts.encoders.endpoint import EndpointEmbedder
from memserve.memory.texts.encoders.json_endpoint import JsonEndpoint, RetryBudget
from memserve.memory.texts.milvus import Vectors
from memserve.tls.authority import new_authority, signed_by
from tests.memory.texts.embedding_server import KEY, EmbeddingServer, serving

TEXTS = ["Where is the spare key?", "a", "Grüße aus Köln 東京 🙂", "word " * 400, "Lunch is at noon."]


@pytest.fixture
def server(embedder: BertEmbedder) -> Iterator[EmbeddingServer]:
    with serving(embedder) as server:
        yield server


def client(server: EmbeddingServer, *, timeout_s: float = 20.0, batch: int = 32, dim: int = 384) -> Any:
    endpoint = JsonEndpoint(server.url, KEY, timeout_s)
    server.at_end.append(endpoint.close)
    return EndpointEmbedder(endpoint, "minilm", Vectors(dim, "test"), Prompts(), batch)


@pytest.fixture(params=["here", "endpoint"])
def either(request: pytest.FixtureRequest, embedder: BertEmbedder) -> Iterator[Embedder]:
    if request.param == "here":
        yield embedder
        return
    with serving(embedder) as server:
        remote = client(server)
        yield remote
        remote.close()


def test_rows_have_unit_length_and_the_order_of_the_texts(either: Embedder, embedder: BertEmbedder) -> None:
    rows = either.embed(TEXTS)
    assert rows.shape == (len(TEXTS), either.vectors.dim) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(rows, embedder.embed(TEXTS), atol=1e-5)


def test_no_texts_give_no_rows(either: Embedder) -> None:
    assert either.embed([]).shape == (0, either.vectors.dim)


def test_a_text_has_the_same_row_alone(either: Embedder) -> None:
    np.testing.assert_allclose(either.embed(TEXTS)[2], either.embed([TEXTS[2]])[0], atol=1e-5)


def test_tokens_are_at_least_one_and_grow(either: Embedder) -> None:
    assert 1 <= either.tokens("a") < either.tokens("a longer text of several words")


def test_more_texts_than_a_batch_are_several_calls(server: EmbeddingServer, embedder: BertEmbedder) -> None:
    texts = [f"text {number}" for number in range(7)]
    np.testing.assert_allclose(client(server, batch=3).embed(texts), embedder.embed(texts), atol=1e-5)
    assert [len(call) for call in server.calls] == [3, 3, 1]


def test_prompts_stand_before_texts(server: EmbeddingServer) -> None:
    endpoint = JsonEndpoint(server.url, KEY, 10.0)
    server.at_end.append(endpoint.close)
    remote = EndpointEmbedder(endpoint, "minilm", Vectors(384), Prompts("query: ", "passage: "), 8)
    remote.embed(["x"], query=True)
    remote.embed(["x"])
    assert server.calls == [["query: x"], ["passage: x"]]


Change = Callable[[dict[str, Any]], Any]


def _vector(value: Any) -> Change:
    def change(answer: dict[str, Any]) -> Any:
        answer["data"][0]["embedding"] = value
        return answer

    return change


def _index(value: Any) -> Change:
    def change(answer: dict[str, Any]) -> Any:
        answer["data"][0]["index"] = value
        return answer

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda answer: {**answer, "data": answer["data"][:1]}, "2 texts with 1 vectors"),
        (lambda answer: {"object": "list"}, "2 texts with no vectors"),
        (lambda answer: [1], "with no vectors"),
        (_index(0), "indexes of its answer"),
        (_index(7), "indexes of its answer"),
        (_index(True), "indexes of its answer"),
        (_index(None), "indexes of its answer"),
        (_vector([1.0] * 383), "383 numbers, and 384 are expected"),
        (_vector([0.0] * 384), "no length"),
        (_vector([float("nan")] + [1.0] * 383), "not finite"),
        (_vector([1e300] * 384), "not finite"),
        (_vector([True] * 384), "no vector of numbers"),
        (_vector("AAAA"), "no vector of numbers"),
        (_vector([10**400] + [1.0] * 383), "no number"),
        (lambda answer: {**answer, "more": "x" * (1 << 20)}, "more than"),
    ],
)
def test_an_answer_that_is_not_what_it_should_be_is_refused(
    change: Change, said: str, server: EmbeddingServer
) -> None:
    server.change = change
    with pytest.raises(EmbedderUnavailable, match=said):
        client(server).embed(["one", "two"])
    assert len(server.calls) == 1, "it would be the same a second time"


def test_what_is_no_json_is_refused(server: EmbeddingServer) -> None:
    for content in (b"", b"<html>", b"[" * 10_000, b"\xff"):
        server.fault = lambda texts, content=content: content
        with pytest.raises(EmbedderUnavailable, match="no JSON"):
            client(server).embed(["one"])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again(status: int, server: EmbeddingServer) -> None:
    server.fault = lambda texts: status if len(server.calls) < 3 else None
    assert client(server).embed(["one"]).shape == (1, 384)
    assert len(server.calls) == 3


def test_tries_are_bounded_in_number_and_the_endpoint_says_how_long_it_wants_to_be_left_alone(
    server: EmbeddingServer,
) -> None:
    server.fault = lambda texts: 503
    with pytest.raises(EmbedderUnavailable, match="HTTP 503"):
        client(server).embed(["one"])
    assert len(server.calls) == 3
    server.calls.clear()
    server.retry_after = "3600"
    began_s = time.monotonic()
    with pytest.raises(EmbedderUnavailable, match="HTTP 503"):
        client(server).embed(["one"])
    assert len(server.calls) == 1 and time.monotonic() - began_s < 2, "no time is left for another try"


def test_many_calls_at_an_endpoint_that_is_down_are_not_tried_again_without_end(
    server: EmbeddingServer,
) -> None:
    remote = client(server)
    server.fault = lambda texts: 503
    for _ in range(10):
        with pytest.raises(EmbedderUnavailable):
            remote.embed(["one"])
    assert len(server.calls) <= 15
    budget = RetryBudget()
    assert [budget.failed() for _ in range(6)] == [True] * 4 + [False] * 2
    for _ in range(30):
        budget.succeeded()
    assert budget.failed()


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "set embedder_key"), (403, "set embedder_key"), (404, "embedder_url"), (302, "redirect")],
)
def test_a_refusal_says_what_to_do_and_is_final(status: int, said: str, server: EmbeddingServer) -> None:
    server.fault = lambda texts: status
    with pytest.raises(EmbedderUnavailable, match=said):
        client(server).embed(["one"])
    assert len(server.calls) == 1


def test_a_refused_text_is_the_callers_fault(server: EmbeddingServer) -> None:
    server.fault = lambda texts: 413
    with pytest.raises(InvalidField, match="HTTP 413") as refused:
        client(server).embed(["one"], query=True)
    assert refused.value.field == "query"


def test_neither_the_key_nor_a_text_is_in_an_error_or_a_log(
    server: EmbeddingServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.key = "another"
    with caplog.at_level(logging.DEBUG), pytest.raises(EmbedderUnavailable) as refused:
        client(server).embed(["the secret text"])
    said = str(refused.value) + repr(refused.value) + caplog.text
    assert KEY not in said and "secret text" not in said


def test_an_answer_that_comes_slowly_ends_with_the_time(server: EmbeddingServer) -> None:
    server.drip_s = 0.05
    began_s = time.monotonic()
    with pytest.raises(EmbedderUnavailable, match="embedder_timeout_s"):
        client(server, timeout_s=0.5).embed(["one"])
    assert time.monotonic() - began_s < 2


def test_an_answer_that_breaks_off_is_asked_for_again(server: EmbeddingServer) -> None:
    server.breaks_off = 1
    assert client(server).embed(["one"]).shape == (1, 384)
    assert len(server.calls) == 2


def test_nobody_listens(server: EmbeddingServer) -> None:
    server.url = "http://127.0.0.1:1/v1"
    with pytest.raises(EmbedderUnavailable, match="ConnectionRefusedError"):
        client(server, timeout_s=3).embed(["one"])


def test_a_proxy_of_the_environment_is_not_used(
    server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert client(server).embed(["one"]).shape == (1, 384)


def test_connections_are_used_again_and_a_server_that_came_back_is_found(embedder: BertEmbedder) -> None:
    with serving(embedder) as first:
        port = int(first.url.rpartition(":")[2].partition("/")[0])
        remote = client(first)
        remote.embed(["one"])
        remote.embed(["two"])
        assert first.connections == 1
    with serving(embedder, port=port) as second:
        remote.embed(["three"])
        assert second.calls == [["three"]]
    remote.close()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"embedder_url": "ftp://host/v1", "embedder_model": "m"}, "http"),
        ({"embedder_url": "https://u:p@host/v1", "embedder_model": "m"}, "no password"),
        ({"embedder_url": "https://host/v1?key=1", "embedder_model": "m"}, "without"),
        ({"embedder_url": "https://host:99999/v1", "embedder_model": "m"}, "http"),
        ({"embedder_url": "https:///v1", "embedder_model": "m"}, "host"),
        ({"embedder_url": "https://host/v1"}, "needs embedder_model"),
        ({"embedder_url": "https://host/v1", "embedder_model": "m", "embedder": "/x"}, "one of them"),
        ({"embedder_model": "m"}, "not set"),
        ({"embedder_key": "a\nb"}, "printable"),
        ({"embedder_dim": 9000}, "8192"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(**given)


def test_a_certificate_of_unknown_authorities_is_refused_and_named_ones_are_taken(
    embedder: BertEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    until = now + datetime.timedelta(days=1)
    authority = new_authority("tests", until, now)
    own = signed_by(authority, ["localhost"], until, now)
    ca, certificate = tmp_path / "ca.crt", tmp_path / "tls.pem"
    ca.write_bytes(authority.certificate)
    certificate.write_bytes(own.certificate + own.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(embedder, context) as server:
        with pytest.raises(EmbedderUnavailable, match="certificate is not trusted"):
            client(server, timeout_s=5).embed(["one"])
        assert not server.calls
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))
        assert client(server).embed(["one"]).shape == (1, 384)
        server.url = server.url.replace("localhost", "127.0.0.1")
        with pytest.raises(EmbedderUnavailable, match="certificate is not trusted"):
            client(server, timeout_s=5).embed(["one"])
