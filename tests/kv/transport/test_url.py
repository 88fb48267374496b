"""What the URL of a cache can say, and which URLs are refused."""

from __future__ import annotations

import pytest

from memserve.kv.store import RedisChunkStore
from memserve.kv.transport.url import parse_cache_url, without_secrets
from tests.kv.transport.chain import NAMESPACE
from tests.kv.transport.refusals import refusal


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("", "redis+sentinel://"),
        ("localhost:6379", "begins with one of"),
        ("http://localhost", "begins with one of"),
        ("redis+replica://:hunter2@localhost", "begins with one of"),
        ("redis://a:1,b:2", "use redis+cluster:// or redis+sentinel://"),
        ("redis://host:port", "a port is no number"),
        ("redis://host:0", "a port is no number"),
        ("redis://user:hunter2/x@host:1", "percent-encode"),
        ("redis://user:hunter2#x@host:1", "percent-encode"),
        ("redis://user:x@hunter2@[::1", "percent-encode"),
        ("redis://host/cache", "database index"),
        ("redis://host?db=one", "'db'"),
        ("redis://host?socket_timeout=60", "unknown parameter 'socket_timeout'"),
        ("redis://host?ssl_ca_certs=/ca.pem", "unknown parameter 'ssl_ca_certs'"),
        ("redis://host?pasword=hunter2", "unknown parameter 'pasword'"),
        ("redis+cluster://host?sentinel_password=hunter2", "unknown parameter 'sentinel_password'"),
        ("redis+cluster://host:1/0", "no database index"),
        ("redis+cluster://host:1?db=0", "no database index"),
        ("redis+cluster://", "host is missing"),
        ("redis+cluster://a:1,", "host is missing"),
        ("redis+sentinel://a:1,b:2", "name of the Sentinels' service"),
        ("redis+sentinel://a:1/cache/one", "database index"),
        ("unix://", "path of a socket"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_with_what_to_do(url: str, part: str) -> None:
    assert part in refusal(url)
    with pytest.raises(ValueError, match=r".+"):
        RedisChunkStore(url, NAMESPACE)


def test_a_url_says_servers_credentials_and_database() -> None:
    sentinel = parse_cache_url(
        "rediss+sentinel://me:p%2Fw@a,b:2,[::1]:3/cache/5?sentinel_password=s&ssl_ca_certs=/ca.pem"
    )
    assert (sentinel.addresses, sentinel.service) == ((("a", 26379), ("b", 2), ("::1", 3)), "cache")
    assert sentinel.options == {
        "ssl": True,
        "username": "me",
        "password": "p/w",
        "db": 5,
        "ssl_ca_certs": "/ca.pem",
    }
    assert sentinel.sentinel_options == {"ssl": True, "password": "s", "ssl_ca_certs": "/ca.pem"}
    cluster = parse_cache_url("redis+cluster://:pw@a:1,b")
    assert (cluster.addresses, cluster.options) == ((("a", 1), ("b", 6379)), {"password": "pw"})
    assert "pw" not in repr(cluster)
    plain = parse_cache_url("rediss://me@host/2?ssl_check_hostname=no")
    assert plain.addresses == (("host", 6379),)
    assert plain.options == {"ssl": True, "username": "me", "db": 2, "ssl_check_hostname": False}
    socket = parse_cache_url("unix://me@/run/redis.sock?db=1&password=pw")
    assert (socket.addresses, socket.options) == (
        (("/run/redis.sock", 0),),
        {"username": "me", "db": 1, "password": "pw"},
    )


def test_a_url_can_be_shown_without_its_secrets() -> None:
    assert (
        without_secrets("redis+sentinel://me:pw@a:1,b:2/cache?sentinel_password=pw")
        == "redis+sentinel://…@a:1,b:2/cache"
    )
    assert without_secrets("unix:///run/redis.sock?password=pw") == "unix:///run/redis.sock"
