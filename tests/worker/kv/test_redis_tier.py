"""The Redis tier: alone, and under a real vLLM engine with a tiny random model."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from memserve.kv.keys import CacheNamespace, block_keys, chunk_keys, member, redis_key
from memserve.kv.store import RedisChunkStore
from memserve.kv.values.envelope import HEADER_BYTES
from tests.kv.one_chunk import get, put
from tests.kv.redis_server import RedisServer, wait_until
from tests.worker.kv.tier_collectors import unregister_tier_metrics

NAMESPACE = CacheNamespace(
    model_digest="tiny", kv_dtype="float32", kv_layout="test", block_size_tokens=32, blocks_per_chunk=2
)
VOCABULARY = 256
MAX_TOKENS = 8


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


# The tier alone


CHUNK_BYTES = 4096


def tier_over(host: np.ndarray, redis_url: str, **parameters: Any) -> Any:
    from memserve.worker.kv.redis_tier import RedisTier

    spec: Any = SimpleNamespace(kv_events_config=SimpleNamespace(enable_kv_cache_events=True))
    return RedisTier(
        spec, memoryview(host), "RedisTier", redis_url=redis_url, namespace=NAMESPACE.digest, **parameters
    )


def request(keys: list[bytes], name: str = "r", **owner: Any) -> Any:
    """A request whose prompt has these chunks of 64 tokens. owner: as the gateway says it."""
    from vllm.v1.kv_offload.base import OffloadKey, ReqContext

    from memserve.worker.kv.redis_tier import OWNER

    context = ReqContext(name, {OWNER: owner} if owner else None)
    for number, key in enumerate(keys, start=1):
        context.set_offload_key_position(OffloadKey(key), 64 * number)
    return context


def job(job_id: int, keys: list[bytes], chunks: list[int], *, is_load: bool, context: Any = None) -> Any:
    from vllm.v1.kv_offload.base import OffloadKey
    from vllm.v1.kv_offload.tiering.base import TransferJob

    return TransferJob(
        job_id,
        [OffloadKey(key) for key in keys],
        np.array(chunks, dtype=np.int32),
        is_load,
        context or request(keys),
    )


def finished(tier: Any) -> Any:
    tier.drain_jobs()
    (result,) = tier.get_finished_jobs()
    return result


def random_host(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 127, (6, CHUNK_BYTES), dtype=np.int8)


KEYS = [bytes([i]) * 32 + bytes(4) for i in range(5)]


def test_stored_bytes_are_loaded_bytes(redis_server: RedisServer) -> None:
    first, second = random_host(1), random_host(2)
    writer, reader = tier_over(first, redis_server.url), tier_over(second, redis_server.url)
    writer.submit_store(job(1, KEYS, [5, 4, 3, 2, 1], is_load=False))
    assert finished(writer).success
    untouched = second[5].copy()
    reader.submit_load(job(2, KEYS, [0, 1, 2, 3, 4], is_load=True))
    result = finished(reader)
    assert result.success and result.transfer_bytes == 5 * CHUNK_BYTES
    assert np.array_equal(second[:5], first[:0:-1])
    assert np.array_equal(second[5], untouched)
    writer.shutdown()
    reader.shutdown()


def test_a_load_keeps_what_verified_and_reports_the_rest_as_misses(redis_server: RedisServer) -> None:
    from vllm.v1.kv_offload.base import LookupResult, OffloadKey, ReqContext, ScheduleEndContext

    tier = tier_over(random_host(3), redis_server.url)
    tier.submit_store(job(1, KEYS, [0, 1, 2, 3, 4], is_load=False))
    finished(tier)
    context, keys = ReqContext("r"), [OffloadKey(key) for key in KEYS]
    assert {tier.lookup(key, context) for key in keys} == {LookupResult.RETRY}
    tier.on_schedule_end(ScheduleEndContext([], []))
    wait_until(
        lambda: (
            tier.on_schedule_end(ScheduleEndContext([], []))
            or tier.lookup(keys[0], context) is LookupResult.HIT
        )
    )
    redis_server.client.setrange(redis_key(NAMESPACE.digest, KEYS[2]), 1000, b"\x00\xff\x00")
    redis_server.client.delete(redis_key(NAMESPACE.digest, KEYS[4]))
    tier.submit_load(job(2, KEYS, [0, 1, 2, 3, 4], is_load=True))
    result = finished(tier)
    assert not result.success
    assert list(result.successful_keys) == [KEYS[0], KEYS[1], KEYS[3]]
    hit, miss = LookupResult.HIT, LookupResult.MISS
    assert [tier.lookup(key, context) for key in keys] == [hit, hit, miss, hit, miss]
    tier.shutdown()


def test_a_request_only_waits_until_a_load_has_ended(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = tier_over(random_host(8), redis_server.url)
    loading, load = threading.Event(), tier._store.load
    monkeypatch.setattr(
        tier._store, "load", lambda *given, **options: loading.wait(10) and load(*given, **options)
    )
    mine = request(KEYS)
    assert not tier.only_waits(mine.req_id)
    tier.submit_load(job(1, KEYS, [0, 1, 2, 3, 4], is_load=True, context=mine))
    assert tier.only_waits(mine.req_id)
    assert not tier.only_waits("another")
    loading.set()
    tier.drain_jobs()
    assert not tier.only_waits(mine.req_id)  # what has come is to be looked at
    assert len(list(tier.get_finished_jobs())) == 1
    assert not tier.only_waits(mine.req_id)
    tier.shutdown()


@pytest.mark.parametrize("aborted", [False, True])
def test_the_ledger_is_told_of_a_use_when_the_request_has_ended(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, aborted: bool
) -> None:
    """Not before: it would keep the first token waiting. A request that was aborted has ended before its
    load.
    """
    tier = tier_over(random_host(9), redis_server.url)
    tier.submit_store(job(1, KEYS, [0, 1, 2, 3, 4], is_load=False))
    assert finished(tier).success
    told: list[list[bytes]] = []
    monkeypatch.setattr(tier._store, "use", told.append)
    mine = request(KEYS)
    if aborted:
        tier.on_request_finished(mine)
    tier.submit_load(job(2, KEYS, [0, 1, 2, 3, 4], is_load=True, context=mine))
    assert finished(tier).success
    tier.drain_jobs()
    if not aborted:
        assert told == []
        tier.on_request_finished(mine)
        tier.drain_jobs()
    assert told == [KEYS]
    tier.shutdown()


def test_a_stored_chunk_is_announced_and_counted(redis_server: RedisServer) -> None:
    redis_server.client.flushall()
    tier = tier_over(random_host(4), redis_server.url, announce=True)
    tier.submit_store(job(1, KEYS[:2], [0, 1], is_load=False))
    finished(tier)
    (event,) = tier.take_events()
    assert (event.keys, event.removed, event.ownership) == (KEYS[:2], False, "RedisTier")
    stats = tier.get_stats().reduce()
    assert stats["memserve_kv_tier_stored"] == 2
    assert stats["memserve_kv_tier_written_bytes"] == 2 * CHUNK_BYTES
    assert set(stats) <= set(type(tier).build_metric_definitions({}))
    assert tier.get_stats() is None
    tier.shutdown()


def test_without_redis_jobs_fail_quickly_and_the_tier_shuts_down(tmp_path: Path) -> None:
    tier = tier_over(random_host(5), f"unix://{tmp_path}/nowhere.sock")
    started_s = time.monotonic()
    tier.submit_store(job(1, KEYS, [0, 1, 2, 3, 4], is_load=False))
    assert not finished(tier).success
    tier.submit_load(job(2, KEYS, [0, 1, 2, 3, 4], is_load=True))
    result = finished(tier)
    assert not result.success and result.successful_keys is None
    tier.shutdown()
    assert time.monotonic() - started_s < 1


def found_in_redis(tier: Any, keys: list[bytes], context: Any) -> list[bool]:
    """What the scheduler is told once the look-ups are answered."""
    from vllm.v1.kv_offload.base import LookupResult, OffloadKey, ScheduleEndContext

    def ask() -> list[Any]:
        answers = [tier.lookup(OffloadKey(key), context) for key in keys]
        tier.on_schedule_end(ScheduleEndContext([], []))
        return answers

    wait_until(lambda: LookupResult.RETRY not in ask())
    return [answer is LookupResult.HIT for answer in ask()]


def test_what_is_computed_sooner_is_not_loaded(redis_server: RedisServer) -> None:
    redis_server.client.flushall()
    quick, patient = (
        tier_over(random_host(7), redis_server.url),
        tier_over(random_host(7), redis_server.url, always_load=True),
    )
    quick.submit_store(job(1, KEYS, [0, 1, 2, 3, 4], is_load=False))
    finished(quick)
    assert found_in_redis(quick, KEYS, request(KEYS, "first")) == [True] * 5  # nothing is measured yet
    for number in range(3):
        quick.prefilled(10**9, 0.001)
        quick.submit_load(job(2 + number, KEYS, [0, 1, 2, 3, 4], is_load=True))
        finished(quick)
    assert found_in_redis(quick, KEYS, request(KEYS, "second")) == [False] * 5
    for _ in range(80):
        quick.prefilled(1, 1.0)
    assert found_in_redis(quick, KEYS, request(KEYS, "third")) == [True] * 5
    assert found_in_redis(patient, KEYS, request(KEYS)) == [True] * 5
    stats = quick.get_stats()
    assert stats.reduce()["memserve_kv_tier_hits"] == 15
    assert labelled(stats, "load_decisions") == {"unmeasured": 1, "recompute": 1, "load": 1}
    quick.shutdown()
    patient.shutdown()


def labelled(stats: Any, metric: str) -> dict[str, float]:
    """The growth of a metric by its label."""
    return {labels[0]: value for labels, value in stats._values.get(f"memserve_kv_tier_{metric}", {}).items()}


def test_chunks_are_counted_for_the_tenant_and_the_module_and_stand_in_their_chain(
    redis_server: RedisServer,
) -> None:
    redis_server.client.flushall()
    tier = tier_over(random_host(8), redis_server.url)
    context = request(KEYS, tenant="anna", module="ad" * 32, keep=False)
    tier.submit_store(job(1, [KEYS[2], KEYS[0], KEYS[1]], [0, 1, 2], is_load=False, context=context))
    finished(tier)
    tier.submit_store(job(2, KEYS[3:], [3, 4], is_load=False, context=context))
    finished(tier)
    client = redis_server.client
    names = [member(NAMESPACE.digest, key) for key in KEYS]
    entries = [client.hmget(f"{{memserve:kv}}:entry:{name}", "t", "m", "p", "d") for name in names]
    assert entries == [
        [b"anna", b"ad" * 32, names[number - 1].encode() if number else b"", str(64 * (number + 1)).encode()]
        for number in range(5)
    ]
    assert client.hgetall("{memserve:kv}:bytes") == {
        b"anna": b"%d" % (5 * (CHUNK_BYTES + HEADER_BYTES)),
        b"*": b"%d" % (5 * (CHUNK_BYTES + HEADER_BYTES)),
    }
    tier.shutdown()


def test_a_full_quota_keeps_the_beginning_and_what_waits_too_long_is_dropped(
    redis_server: RedisServer,
) -> None:
    redis_server.client.flushall()
    tier = tier_over(random_host(9), redis_server.url, tenant_quota_bytes=3 * (CHUNK_BYTES + HEADER_BYTES))
    tier.submit_store(job(1, KEYS, [0, 1, 2, 3, 4], is_load=False))
    tier.submit_store(
        job(2, [b"x" * 32 + bytes(4)], [5], is_load=False)
    )  # half of the host's memory waits already
    tier.drain_jobs()
    assert len(list(tier.get_finished_jobs())) == 2
    assert sorted(redis_server.client.scan_iter("memserve:kv:*")) == sorted(
        redis_key(NAMESPACE.digest, key).encode() for key in KEYS[:3]
    )
    stats = tier.get_stats()
    assert stats.reduce()["memserve_kv_tier_stores_dropped"] == 1
    assert labelled(stats, "not_admitted") == {"no_room": 2}
    tier.shutdown()


@pytest.mark.parametrize("parameters", [{"redis_uri": "x"}, {"ttl": 1}])
def test_an_unknown_parameter_is_refused_by_name(
    redis_server: RedisServer, parameters: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=next(iter(parameters))):
        tier_over(random_host(6), redis_server.url, **parameters)


def test_a_missing_parameter_is_refused_by_name() -> None:
    from memserve.worker.kv.redis_tier import RedisTierSettings

    with pytest.raises(ValueError, match="namespace"):
        RedisTierSettings.parse({"redis_url": "redis://localhost"})


@pytest.mark.parametrize(
    ("kv_bytes_per_token", "block_size_tokens", "blocks"),
    [
        (512, 32, 2),
        (12 << 10, 32, 4),
        (128 << 10, 16, 1),
        (32 << 10, 16, 4),
        (512, 128, 1),
        (1 << 20, 32, 1),
        (8 << 10, 32, 4),
    ],
)
def test_a_chunk_is_at_most_two_mebibytes_and_loses_little_of_a_prefix(
    kv_bytes_per_token: int, block_size_tokens: int, blocks: int
) -> None:
    from memserve.worker.kv.offload import chunk_blocks

    assert chunk_blocks(kv_bytes_per_token=kv_bytes_per_token, block_size_tokens=block_size_tokens) == blocks


def test_a_region_is_swept_only_when_no_process_has_it_mapped_or_open(tmp_path: Path) -> None:
    from memserve.worker.kv.offload import sweep_orphan_regions

    names = ["mapped", "open", "orphan"]
    mapped, opened, orphan = (tmp_path / f"vllm_offload_{name}.mmap" for name in names)
    other = tmp_path / "something_else.mmap"
    for path in (mapped, opened, orphan, other):
        path.write_bytes(bytes(32 << 20))
    program = (
        "import mmap, sys; a = open(sys.argv[1], 'r+b'); m = mmap.mmap(a.fileno(), 4096); a.close(); "
        "b = open(sys.argv[2]); "
        "print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(mapped), str(opened)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdin is not None
    holder.stdout.readline()
    assert sweep_orphan_regions(tmp_path) == []  # all too young
    assert sweep_orphan_regions(tmp_path, minimum_age_s=0) == [orphan]
    holder.stdin.close()
    holder.wait()
    holder.stdout.close()
    assert set(sweep_orphan_regions(tmp_path, minimum_age_s=0)) == {mapped, opened}
    assert other.exists()


# Under a real engine


class PlatformEngine:
    """A vLLM engine in its own processes, with the Redis tier."""

    def __init__(self, model: Path, redis_url: str, directory: Path) -> None:
        from vllm import LLM
        from vllm.config.kv_events import KVEventsConfig

        from memserve.worker.kv.offload import kv_transfer_config
        from memserve.worker.kv.redis_tier import RedisTierSettings

        tier = RedisTierSettings(
            redis_url=redis_url,
            namespace=NAMESPACE.digest,
            io_timeout_s=0.3,
            pause_s=0.3,
            announce=True,
            always_load=True,
        )
        endpoint = f"ipc://{directory}/events-{os.urandom(4).hex()}"
        self.events = EventListener(endpoint)
        self.llm = LLM(
            model=str(model),
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=1024,
            max_num_seqs=4,
            block_size=NAMESPACE.block_size_tokens,
            num_gpu_blocks_override=256,
            enforce_eager=True,
            enable_prefix_caching=True,
            prefix_caching_hash_algo="sha256_cbor",
            disable_log_stats=False,
            kv_events_config=KVEventsConfig(enable_kv_cache_events=True, publisher="zmq", endpoint=endpoint),
            kv_transfer_config=kv_transfer_config(
                platform="cpu", tier=tier, host_bytes=16 << 20, blocks_per_chunk=NAMESPACE.blocks_per_chunk
            ),
        )

    def ask(self, prompt: list[int], salt: str | None = "tenant") -> Any:
        from vllm import SamplingParams

        request: dict[str, Any] = {"prompt_token_ids": prompt, **({"cache_salt": salt} if salt else {})}
        params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True, detokenize=False)
        (output,) = self.llm.generate([request], params, use_tqdm=False)  # type: ignore[list-item]
        return output

    def tokens(self, prompt: list[int], salt: str | None = "tenant") -> list[int]:
        return list(self.ask(prompt, salt).outputs[0].token_ids)

    def device_pages(self) -> set[str]:
        """Digests of every block in device memory, all layers together."""
        (digests,) = self.llm.collective_rpc(_device_pages)
        return set(digests)

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
        self.events.close()
        unregister_tier_metrics()


def _device_pages(worker: Any) -> list[str]:
    import torch

    layers = [
        cache.view(torch.int8).reshape(cache.shape[0], -1).numpy() for cache in worker.model_runner.kv_caches
    ]
    return [
        hashlib.sha256(b"".join(layer[block].tobytes() for layer in layers)).hexdigest()
        for block in range(layers[0].shape[0])
    ]


class EventListener:
    """Collects the KV events that an engine publishes."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._stop = threading.Event()
        self.received: list[Any] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        import msgspec
        import zmq
        from vllm.distributed.kv_events import KVEventBatch

        socket = zmq.Context.instance().socket(zmq.SUB)
        socket.subscribe(b"")
        socket.connect(self._endpoint)
        while not self._stop.is_set():
            if socket.poll(100):
                _, _, payload = socket.recv_multipart()
                self.received += msgspec.msgpack.decode(payload, type=KVEventBatch).events
        socket.close(linger=0)

    def keys(self, medium: str) -> set[bytes]:
        return {
            key
            for event in self.received
            if getattr(event, "medium", None) == medium
            for key in event.block_hashes
        }

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.15,
        tie_word_embeddings=False,
    )
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def prompt(seed: int, tokens: int = 300) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCABULARY, tokens).tolist()


def prompt_chunks(token_ids: list[int], salt: str | None = "tenant") -> list[bytes]:
    return chunk_keys(
        block_keys(token_ids, NAMESPACE.block_size_tokens, lora=None, cache_salt=salt),
        NAMESPACE.blocks_per_chunk,
    )


FULL_CHUNK_TOKENS = 300 // NAMESPACE.chunk_tokens * NAMESPACE.chunk_tokens
ENGINE_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "PYTHONPATH": str(Path(__file__).parents[3]),
}


class ColdRun(SimpleNamespace):
    """What the first engine answered and left in Redis; that engine is gone."""

    answers: dict[int, list[int]]
    values: dict[bytes, bytes]
    device_pages: set[str]
    events: EventListener


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONHASHSEED", raising=False)
        for name, value in ENGINE_ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


SEEDS = range(5)


@pytest.fixture(scope="module")
def cold_run(
    environment: None, tiny_model: Path, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> ColdRun:
    redis_server.client.flushall()
    engine = PlatformEngine(tiny_model, redis_server.url, tmp_path_factory.mktemp("events"))
    store = RedisChunkStore(redis_server.url, NAMESPACE.digest)
    outputs = {seed: engine.ask(prompt(seed)) for seed in SEEDS}
    assert {output.num_cached_tokens for output in outputs.values()} == {0}
    keys = [key for seed in SEEDS for key in prompt_chunks(prompt(seed))]
    wait_until(lambda: all(store.exists_many(keys)))
    values = {}
    for key in keys:
        payload = get(store, key, redis_server.client.strlen(redis_key(NAMESPACE.digest, key)) - HEADER_BYTES)
        assert payload is not None
        values[key] = payload
    wait_until(lambda: set(prompt_chunks_last_blocks()) <= engine.events.keys("STORAGE"))
    answers = {seed: list(output.outputs[0].token_ids) for seed, output in outputs.items()}
    run = ColdRun(answers=answers, values=values, device_pages=engine.device_pages(), events=engine.events)
    engine.close()
    store.close()
    return run


def prompt_chunks_last_blocks() -> list[bytes]:
    return [key[:32] for seed in SEEDS for key in prompt_chunks(prompt(seed))]


@pytest.fixture(scope="module")
def fresh_engine(
    cold_run: ColdRun, tiny_model: Path, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PlatformEngine]:
    engine = PlatformEngine(tiny_model, redis_server.url, tmp_path_factory.mktemp("events"))
    yield engine
    engine.close()


def payload_pages(payload: bytes, layers: int = 2) -> list[str]:
    """A chunk's payload, [layers, blocks_per_chunk, page], as the digests of its blocks."""
    pages = np.frombuffer(payload, dtype=np.int8).reshape(layers, NAMESPACE.blocks_per_chunk, -1)
    return [
        hashlib.sha256(pages[:, block].tobytes()).hexdigest() for block in range(NAMESPACE.blocks_per_chunk)
    ]


@pytest.mark.engine
@pytest.mark.timeout(180)
def test_the_gateways_keys_name_exactly_what_the_engine_stores(
    cold_run: ColdRun, redis_server: RedisServer
) -> None:
    expected = {
        redis_key(NAMESPACE.digest, key).encode() for seed in SEEDS for key in prompt_chunks(prompt(seed))
    }
    assert set(redis_server.client.scan_iter("memserve:kv:*", count=1000)) == expected


@pytest.mark.engine
@pytest.mark.timeout(180)
def test_events_carry_full_block_keys_of_device_host_and_redis(cold_run: ColdRun) -> None:
    blocks = {key for seed in SEEDS for key in block_keys(prompt(seed), 32, lora=None, cache_salt="tenant")}
    in_chunks = {
        key
        for seed in SEEDS
        for key in block_keys(prompt(seed)[:FULL_CHUNK_TOKENS], 32, lora=None, cache_salt="tenant")
    }
    assert blocks <= cold_run.events.keys("GPU")
    assert in_chunks <= cold_run.events.keys("CPU")
    assert in_chunks == cold_run.events.keys("STORAGE")


@pytest.mark.engine
@pytest.mark.timeout(180)
def test_a_fresh_engine_finds_the_prefix_in_redis_and_answers_the_same(
    cold_run: ColdRun, fresh_engine: PlatformEngine
) -> None:
    output = fresh_engine.ask(prompt(0))
    assert output.num_cached_tokens == FULL_CHUNK_TOKENS
    assert FULL_CHUNK_TOKENS in output.kv_transfer_params["memserve_cached_by_tier"].values()
    assert output.kv_transfer_params["memserve_cached_by_tier"]["redis"] == FULL_CHUNK_TOKENS
    assert list(output.outputs[0].token_ids) == cold_run.answers[0]


@pytest.mark.engine
@pytest.mark.timeout(180)
def test_the_engines_memory_holds_the_very_bytes_that_were_stored(
    cold_run: ColdRun, fresh_engine: PlatformEngine
) -> None:
    fresh_engine.ask(prompt(0))
    stored = {page for key in prompt_chunks(prompt(0)) for page in payload_pages(cold_run.values[key])}
    assert len(stored) == FULL_CHUNK_TOKENS // 32
    assert stored <= cold_run.device_pages
    assert stored <= fresh_engine.device_pages()


@pytest.mark.engine
@pytest.mark.timeout(180)
def test_another_salt_finds_nothing(cold_run: ColdRun, fresh_engine: PlatformEngine) -> None:
    fresh_engine.ask(prompt(0))
    for salt in ("another tenant", None):
        output = fresh_engine.ask(prompt(0), salt)
        assert output.num_cached_tokens == 0
        assert list(output.outputs[0].token_ids) == cold_run.answers[0]


@pytest.mark.engine
@pytest.mark.timeout(180)
def test_a_corrupted_entry_is_a_miss_with_the_same_answer(
    cold_run: ColdRun, fresh_engine: PlatformEngine, redis_server: RedisServer
) -> None:
    keys = prompt_chunks(prompt(1))
    redis_server.client.setrange(redis_key(NAMESPACE.digest, keys[2]), 5000, b"\x00\x01\x02\x03\x04\x05")
    output = fresh_engine.ask(prompt(1))
    assert output.num_cached_tokens == 2 * NAMESPACE.chunk_tokens
    assert list(output.outputs[0].token_ids) == cold_run.answers[1]
    store = RedisChunkStore(redis_server.url, NAMESPACE.digest)
    wait_until(
        lambda: get(store, keys[2], len(cold_run.values[keys[2]])) is not None
    )  # computed again, stored again
    store.close()
    samples = [
        sample
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "memserve_kv_tier_refused_total"
    ]
    assert [(sample.labels["reason"], sample.value) for sample in samples] == [("bad_checksum", 1)]


@pytest.mark.engine
@pytest.mark.timeout(180)
def test_requests_succeed_without_redis_and_its_return_is_noticed(
    cold_run: ColdRun, fresh_engine: PlatformEngine, redis_server: RedisServer
) -> None:
    redis_server.stop()
    started_s = time.monotonic()
    output = fresh_engine.ask(prompt(2))
    assert output.num_cached_tokens == 0
    assert list(output.outputs[0].token_ids) == cold_run.answers[2]
    assert time.monotonic() - started_s < 5

    redis_server.start()
    store = RedisChunkStore(redis_server.url, NAMESPACE.digest)
    for key in prompt_chunks(prompt(3)):
        put(store, key, cold_run.values[key])
    time.sleep(0.4)
    loaded = fresh_engine.ask(prompt(3))
    assert loaded.num_cached_tokens == FULL_CHUNK_TOKENS
    assert list(loaded.outputs[0].token_ids) == cold_run.answers[3]
    fresh_engine.ask(prompt(77))
    wait_until(lambda: all(store.exists_many(prompt_chunks(prompt(77)))))
    store.close()


@pytest.mark.engine
@pytest.mark.timeout(180)
def test_a_redis_that_hangs_delays_a_request_by_no_more_than_its_timeouts(
    cold_run: ColdRun, fresh_engine: PlatformEngine, redis_server: RedisServer
) -> None:
    redis_server.pause()
    started_s = time.monotonic()
    assert fresh_engine.tokens(prompt(4)) == cold_run.answers[4]
    elapsed_s = time.monotonic() - started_s
    redis_server.resume()
    assert elapsed_s < 3
