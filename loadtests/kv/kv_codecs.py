"""What the codecs of KV in Redis save and cost: lengths, speeds, the time of a load over three wires, and
what int8 does to answers.

The KV is real: the demo model's, computed by vLLM from handbooks and read from Redis, in float32 (as the demo
is served) and in bfloat16. Speeds are of one core (its time in the codec, so that others on the machine do
not count), on 2 MiB of chunks. The wire here is measured, by loads through the store; the others are computed
from their bit rate. A load is the payload's time on the wire and then the decoding; with a second core they
overlap, and the longer counts.

A lossless codec gains when a load ends sooner than a raw one here or at 10 Gbit/s, or when it keeps at least
a quarter more in the same memory for less than 1.25 times the time at 10 Gbit/s. Compressors that are not
installed are left out.

A codec's cost to answers: the same questions are asked again of an engine that has forgotten all but what is
in Redis. An engine that stores raw is asked twice more, since what differs then is not a codec's doing; then
one for each other codec. A lossless codec must change nothing; what int8 changes is told.
"""

from __future__ import annotations

import gc
import importlib.util
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import redis

from loadtests.harness.engines import prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.redis_server import PrivateRedis
from memserve.demo import MODEL_DIR, facts
from memserve.kv.keys import block_keys, chunk_keys, redis_key
from memserve.kv.outcomes import Put
from memserve.kv.store import RedisChunkStore
from memserve.kv.values.envelope import HEADER_BYTES, Codec, compress, decompress
from memserve.kv.values.int8 import ChunkLayout, from_int8, to_int8
from memserve.model.files import open_model

DTYPES, QUICK_DTYPES = ("float32", "bfloat16"), ("bfloat16",)
ITEM_BYTES = {"float32": 4, "bfloat16": 2}
INT8_SHARE = {"float32": 0.28, "bfloat16": 0.55}
QUESTIONS, QUICK_QUESTIONS = 200, 40
ROUNDS, QUICK_ROUNDS = 15, 3
BLOCK_TOKENS, BLOCKS_PER_CHUNK = 32, 2
HANDBOOK_TOKENS, QUESTIONS_PER_BOOK = 1000, 10
SAMPLE_BYTES = 2 << 20
MAX_TOKENS = 16
LOGPROBS = 20
NAMESPACES = {Codec.RAW: "c0" * 32, Codec.LOSSLESS: "c1" * 32, Codec.INT8: "c2" * 32}
# Of the engines that are asked, beside raw.
ANSWERED_CODECS: dict[str, tuple[Codec, ...]] = {
    "float32": (Codec.INT8,),
    "bfloat16": (Codec.LOSSLESS, Codec.INT8),
}
WIRES = {"10 Gbit/s": 10e9 / 8, "1 Gbit/s": 1e9 / 8}  # bytes a second
PATIENT: dict[str, Any] = {
    "io_timeout_s": 10.0,
    "lookup_timeout_s": 10.0,
    "load_budget_s": 30.0,
    "always_load": True,
}

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Method:
    """encode: raw bytes to encoded ones. decode: encoded bytes into an array as long as the raw ones."""

    name: str
    encode: Callable[[Bytes], bytes | bytearray]
    decode: Callable[[bytes | bytearray, Bytes], None]
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Timed:
    """A method on one sample: share of the raw length, seconds for the sample."""

    share: float
    encode_s: float
    decode_s: float
    same: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question with its expected answer, and the task that it belongs to."""

    token_ids: list[int]
    expected: str
    task: str


@dataclass(frozen=True, slots=True)
class Answer:
    """logprobs: of each token that was answered, the best tokens and their log-probabilities."""

    token_ids: list[int]
    text: str
    cached_tokens: int
    logprobs: list[dict[int, float]]


class CodecEngine:
    """A real engine on the demo model in a dtype of choice, its KV in Redis, one question at a time."""

    def __init__(self, redis_url: str, dtype: str, codec: Codec) -> None:
        from vllm import LLM

        from memserve.worker.engine.cpu import CpuExecutor
        from memserve.worker.kv.offload import kv_transfer_config
        from memserve.worker.kv.redis_tier import RedisTierSettings

        self.llm = LLM(
            model=str(MODEL_DIR),
            dtype=dtype,  # type: ignore[arg-type]
            max_model_len=2048,
            max_num_seqs=1,
            block_size=BLOCK_TOKENS,
            kv_cache_memory_bytes=64 << 20,
            enforce_eager=True,
            enable_prefix_caching=True,
            prefix_caching_hash_algo="sha256_cbor",
            disable_log_stats=True,
            distributed_executor_backend=CpuExecutor,
            kv_transfer_config=kv_transfer_config(
                platform="cpu",
                tier=RedisTierSettings(
                    redis_url=redis_url,
                    namespace=NAMESPACES[codec],
                    codec=codec.name.lower(),
                    layout=asdict(chunk_layout(dtype)) if codec is Codec.INT8 else None,
                    **PATIENT,
                ),
                host_bytes=64 << 20,
                blocks_per_chunk=BLOCKS_PER_CHUNK,
            ),
        )

    def ask(self, token_ids: list[int], max_tokens: int = MAX_TOKENS) -> Answer:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=max_tokens, logprobs=LOGPROBS)
        (output,) = self.llm.generate([{"prompt_token_ids": token_ids}], params, use_tqdm=False)  # type: ignore[list-item]
        made = output.outputs[0]
        steps = [{token: entry.logprob for token, entry in step.items()} for step in made.logprobs or ()]
        return Answer(list(made.token_ids), made.text.strip(), output.num_cached_tokens or 0, steps)

    def forget(self) -> None:
        """Everything that it holds in its own memory."""
        self.llm.reset_prefix_cache(reset_connector=True)

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


def chunk_layout(dtype: str) -> ChunkLayout:
    """Of this module's engine on this machine."""
    import torch

    from memserve.worker.kv.offload import kv_layout

    model = open_model(MODEL_DIR)
    name = kv_layout(
        platform="cpu",
        dtype=getattr(torch, dtype),
        block_size_tokens=BLOCK_TOKENS,
        head_size=model.head_size,
        tensor_parallel_size=1,
    )
    return ChunkLayout.of(
        name,
        dtype=dtype,
        tensors=model.config["num_hidden_layers"],
        blocks=BLOCKS_PER_CHUNK,
        block_tokens=BLOCK_TOKENS,
        kv_heads=model.config["num_key_value_heads"],
        head_size=model.head_size,
    )


def lossless_methods(item_bytes: int) -> list[Method]:
    """Every compressor that is installed, on the bytes as they are and on planes of bytes; and memserve's
    own.
    """
    plain: list[tuple[str, Callable[[Bytes], bytes], Callable[[bytes], bytes]]] = [
        ("zlib 1", lambda raw: zlib.compress(raw, 1), zlib.decompress)  # type: ignore[arg-type]
    ]
    if _installed("isal"):
        from isal import isal_zlib  # type: ignore[import-not-found]

        plain.append(("isal 1", lambda raw: isal_zlib.compress(raw, 1), isal_zlib.decompress))
    if _installed("lz4"):
        from lz4 import block  # type: ignore[import-not-found]

        plain.append(("lz4", lambda raw: block.compress(raw), block.decompress))
    if _installed("zstandard"):
        from zstandard import ZstdCompressor, ZstdDecompressor

        for level in (1, 3):
            compressor = ZstdCompressor(level=level)
            plain.append(
                (
                    f"zstd {level}",
                    lambda raw, to=compressor: to.compress(raw.data),
                    ZstdDecompressor().decompress,
                )
            )  # type: ignore[misc]
    methods = []
    for name, encode, decode in plain:
        methods.append(Method(name, encode, _into(decode)))
        methods.append(
            Method(
                f"{name}, planes",
                lambda raw, encode=encode: encode(
                    np.ascontiguousarray(raw.reshape(-1, item_bytes).T).reshape(-1)
                ),  # type: ignore[misc]
                _planes_into(decode, item_bytes),
            )
        )
    if _installed("zstandard") and item_bytes == 2:
        methods.append(
            Method(
                "Codec.LOSSLESS",
                lambda raw: compress(raw.data),
                lambda encoded, raw: decompress(encoded, raw.data),
            )
        )
    return methods


def int8_method(layout: ChunkLayout) -> Method:
    """The chunks of a sample one after the other."""

    def encode(raw: Bytes) -> bytes:
        return b"".join(to_int8(chunk.data, layout) for chunk in raw.reshape(-1, layout.raw_bytes))

    def decode(encoded: bytes | bytearray, raw: Bytes) -> None:
        view = memoryview(encoded)
        for number, chunk in enumerate(raw.reshape(-1, layout.raw_bytes)):
            from_int8(view[number * layout.int8_bytes : (number + 1) * layout.int8_bytes], chunk.data, layout)

    return Method("Codec.INT8", encode, decode, exact=False)


def time_methods(methods: Sequence[Method], samples: Sequence[Bytes], rounds: int) -> dict[str, Timed]:
    """Medians over rounds and samples, the methods in turn."""
    seen: dict[str, list[Timed]] = {method.name: [] for method in methods}
    for _ in range(rounds):
        for raw in samples:
            loaded = np.empty_like(raw)
            for method in methods:
                loaded.fill(0)  # resident, as the host tier's memory is
                started_s = time.thread_time()
                encoded = method.encode(raw)
                encoded_s = time.thread_time()
                method.decode(encoded, loaded)
                decoded_s = time.thread_time()
                same = bool((loaded == raw).all())
                seen[method.name].append(
                    Timed(len(encoded) / raw.size, encoded_s - started_s, decoded_s - encoded_s, same)
                )
    return {
        name: Timed(
            statistics.mean(one.share for one in all_),
            statistics.median(one.encode_s for one in all_),
            statistics.median(one.decode_s for one in all_),
            all(one.same for one in all_),
        )
        for name, all_ in seen.items()
    }


def wire_bytes_per_s(url: str, rounds: int) -> float:
    """Verified loads of raw values of SAMPLE_BYTES through the store, median."""
    store = RedisChunkStore(url, "ab" * 32)
    keys = [bytes([number]) * 36 for number in range(4)]
    payload = np.random.default_rng(1).bytes(SAMPLE_BYTES)
    destinations = [memoryview(bytearray(SAMPLE_BYTES)) for _ in keys]
    assert set(store.store(keys, [payload] * len(keys), budget_s=10)) == {Put.STORED}
    taken_s = []
    for _ in range(2 + rounds):
        started_s = time.perf_counter()
        assert all(store.load(keys, destinations, budget_s=10))
        taken_s.append(time.perf_counter() - started_s)
    store.close()
    return len(keys) * SAMPLE_BYTES / statistics.median(taken_s)


@dataclass(frozen=True, slots=True)
class Load:
    """Of SAMPLE_BYTES of chunks over one wire: seconds raw, seconds encoded, and seconds encoded with
    decoding on a second core.
    """

    raw_s: float
    in_turn_s: float
    overlapped_s: float


def load(timed: Timed, bytes_per_s: float) -> Load:
    raw_s = SAMPLE_BYTES / bytes_per_s
    return Load(raw_s, raw_s * timed.share + timed.decode_s, max(raw_s * timed.share, timed.decode_s))


def gains(timed: Timed, here_bytes_per_s: float) -> bool:
    here, ten = load(timed, here_bytes_per_s), load(timed, WIRES["10 Gbit/s"])
    sooner = here.in_turn_s < here.raw_s or ten.in_turn_s < ten.raw_s
    return sooner or (timed.share <= 1 / 1.25 and ten.in_turn_s < 1.25 * ten.raw_s)


def draw_prompts(count: int, seed: int) -> list[Prompt]:
    """Half of them ask about a handbook, half about a few passages; all have a full chunk at least."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)

    def tokens(messages: Sequence[facts.Message]) -> list[int]:
        text = tokenizer.apply_chat_template(
            [each.as_dict() for each in messages], tokenize=False, add_generation_prompt=True
        )
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    prompts: list[Prompt] = []
    for number in range(-(-count // 2 // QUESTIONS_PER_BOOK)):
        book = facts.handbook(seed * 1000 + number, HANDBOOK_TOKENS)
        for question in facts.handbook_questions(book, seed, QUESTIONS_PER_BOOK):
            prompts.append(
                Prompt(tokens(facts.prompt(book.text, [], question.text)), question.answer, "handbook")
            )
    prompts = prompts[: count // 2]
    for case in facts.held_out_cases(seed, 20 * count, "passage"):
        token_ids = tokens(case.messages)
        if len(prompts) < count and len(token_ids) > BLOCK_TOKENS * BLOCKS_PER_CHUNK:
            prompts.append(Prompt(token_ids, case.expected, "passages"))
    return prompts


def stored_chunks(client: redis.Redis, token_ids: list[int]) -> list[bytes]:
    """The prompt's raw chunks from Redis, in order, without their headers."""
    keys = chunk_keys(block_keys(token_ids, BLOCK_TOKENS, lora=None, cache_salt=None), BLOCKS_PER_CHUNK)
    values = [client.get(redis_key(NAMESPACES[Codec.RAW], key)) for key in keys]
    assert all(isinstance(value, bytes) for value in values), "an engine has not stored what it computed"
    return [bytes(value)[HEADER_BYTES:] for value in values if isinstance(value, bytes)]


def arrangement_error(layout: ChunkLayout, chunks: Sequence[bytes], token_ids: list[int]) -> float:
    """How far the chunks, read as `layout` says, are from the K and V that transformers computes: the largest
    difference of all.

    Only for float32 and a packing that transposes K.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    with torch.inference_mode():
        cache = model(input_ids=torch.tensor([token_ids])).past_key_values
    shape = (layout.tensors, layout.blocks, layout.kv_heads, 2, -1)
    worst = 0.0
    for place, chunk in enumerate(chunks):
        pages = np.frombuffer(chunk, np.float32).reshape(shape)
        tokens = slice(
            place * layout.blocks * layout.block_tokens, (place + 1) * layout.blocks * layout.block_tokens
        )
        for tensor in range(layout.tensors):
            front = (layout.blocks, layout.kv_heads)
            keys = (
                pages[tensor, :, :, 0].reshape(*front, layout.head_size, layout.block_tokens).swapaxes(2, 3)
            )
            values = pages[tensor, :, :, 1].reshape(*front, layout.block_tokens, layout.head_size)
            for mine, other in ((keys, cache.layers[tensor].keys), (values, cache.layers[tensor].values)):
                by_token = mine.transpose(1, 0, 2, 3).reshape(layout.kv_heads, -1, layout.head_size)
                worst = max(worst, float(np.abs(by_token - other[0, :, tokens].numpy()).max()))
    return worst


def kernel_errors() -> list[list[object]]:
    """vLLM's own kernels write K with one channel, and V with one token, that is large; int8 must not smear
    it over the others.

    Returns a row for each packing and dtype: the largest error of the small numbers, in steps of a scale that
    they share with no large one. More than half a step, and the rounding, would mean that the layout is not
    the kernel's.
    """
    import torch
    from vllm import _custom_ops as ops

    rows: list[list[object]] = []
    for packing, dtype in (
        ("vec", "float32"),
        ("vec", "bfloat16"),
        ("vec16", "bfloat16"),
        ("amx", "bfloat16"),
    ):
        layout = ChunkLayout(
            dtype=dtype, tensors=1, blocks=3, block_tokens=64, kv_heads=2, head_size=64, packing=packing
        )
        kind = getattr(torch, dtype)
        tokens = layout.blocks * layout.block_tokens
        keys, values = (
            torch.rand(
                2, tokens, layout.kv_heads, layout.head_size, generator=torch.Generator().manual_seed(1)
            )
            * 2
            - 1
        )
        keys[..., 7] *= 1000
        values[5] *= 1000
        large_keys, large_values = torch.zeros_like(keys, dtype=kind), torch.zeros_like(values, dtype=kind)
        large_keys[..., 7] = 1
        large_values[5] = 1

        def written(
            keys: Any,
            values: Any,
            packing: str = packing,
            layout: ChunkLayout = layout,
            kind: Any = kind,
            tokens: int = tokens,
        ) -> Any:
            cache = torch.zeros(
                layout.blocks, layout.kv_heads, 2 * layout.block_tokens, layout.head_size, dtype=kind
            )
            ops.cpu_attn_reshape_and_cache(
                keys.to(kind),
                values.to(kind),
                *cache.chunk(2, dim=2),
                torch.arange(tokens),
                packing,
                k_scale=1.0,
                v_scale=1.0,
                kv_cache_dtype="auto",
            )
            return cache

        try:
            cache, large = written(keys, values), written(large_keys, large_values)
        except RuntimeError:  # vLLM is built with the packings of one kind of processor
            rows.append([packing, dtype, "not in this build"])
            continue
        loaded = torch.empty_like(cache)
        layout_bytes = cache.view(torch.uint8).numpy().tobytes()
        from_int8(to_int8(layout_bytes, layout), loaded.view(torch.uint8).numpy().reshape(-1).data, layout)
        error = (loaded.float() - cache.float()).abs()[large == 0].max()
        rows.append([packing, dtype, round(float(error) * 127, 3)])
    return rows


def ask_all(engine: CodecEngine, prompts: Sequence[Prompt], name: str) -> list[Answer]:
    engine.forget()
    answers = []
    for place, prompt in enumerate(prompts):
        answers.append(engine.ask(prompt.token_ids))
        if place % 50 == 0:
            report(f"{name}: {place} of {len(prompts)}")
    return answers


def ask_through_redis(
    url: str, client: redis.Redis, dtype: str, codec: Codec, prompts: Sequence[Prompt]
) -> list[Answer]:
    """The answers of a new engine of this codec with the KV that it has stored itself."""
    engine = CodecEngine(url, dtype, codec)
    ask_all(engine, prompts, f"{dtype}, {codec.name.lower()}, cold")
    _settle(client)
    answers = ask_all(engine, prompts, f"{dtype}, {codec.name.lower()}")
    engine.close()
    del engine
    gc.collect()
    return answers


def compare(
    name: str, prompts: Sequence[Prompt], raw: Sequence[Answer], answers: Sequence[Answer]
) -> dict[str, object]:
    """logprob differences: of the token that raw answered; where it is not among the best of the other, of
    the least of those.
    """
    first, every = [], []
    for one, other in zip(raw, answers, strict=True):
        for place, token in enumerate(one.token_ids):
            there = other.logprobs[place]
            difference = abs(one.logprobs[place][token] - there.get(token, min(there.values())))
            every.append(difference)
            if place == 0:
                first.append(difference)
            if other.token_ids[place] != token:
                break
    figures: dict[str, object] = {
        "KV": name,
        "answers": len(answers),
        "with a hit": sum(answer.cached_tokens > 0 for answer in answers),
        "other tokens": sum(
            one.token_ids != other.token_ids for one, other in zip(raw, answers, strict=True)
        ),
        "first token |dlogp| mean": round(statistics.mean(first), 6),
        "max": round(max(first), 6),
        "all tokens |dlogp| mean": round(statistics.mean(every), 6),
        "max ": round(max(every), 6),
    }
    for task in sorted({prompt.task for prompt in prompts}):
        asked = [
            (prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if prompt.task == task
        ]
        figures[f"{task} right"] = (
            f"{sum(answer.text == prompt.expected for prompt, answer in asked)}/{len(asked)}"
        )
    return figures


def measure(
    dtype: str, prompts: Sequence[Prompt], rounds: int, here_bytes_per_s: float
) -> tuple[list[list[object]], list[dict[str, object]], list[Bar]]:
    """Returns the rows of the codecs, the rows of the answers, and the bars."""
    layout = chunk_layout(dtype)
    bars = []
    with (
        tempfile.TemporaryDirectory() as folder,
        PrivateRedis(Path(folder)) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        engine = CodecEngine(server.url, dtype, Codec.RAW)
        cold = ask_all(engine, prompts, f"{dtype}, cold")
        _settle(client)
        raw = ask_all(engine, prompts, f"{dtype}, raw")
        again = ask_all(engine, prompts, f"{dtype}, raw again")
        longest = max(prompts, key=lambda prompt: len(prompt.token_ids))
        chunks = stored_chunks(client, longest.token_ids)
        handbooks = [prompt.token_ids for prompt in prompts if prompt.task == "handbook"]
        pool = b"".join(
            b"".join(stored_chunks(client, token_ids)) for token_ids in handbooks[::QUESTIONS_PER_BOOK]
        )
        samples = [
            np.frombuffer(pool, np.uint8, SAMPLE_BYTES, place * SAMPLE_BYTES)
            for place in range(min(3, len(pool) // SAMPLE_BYTES))
        ]
        if dtype == "float32" and layout.packing == "vec":
            error = arrangement_error(layout, chunks, longest.token_ids)
            bars.append(
                Bar(
                    "K and V where the layout says, largest difference from transformers'",
                    error,
                    at_most=1e-3,
                )
            )
        engine.close()
        del engine
        gc.collect()
        others = {
            codec.name.lower(): ask_through_redis(server.url, client, dtype, codec, prompts)
            for codec in ANSWERED_CODECS[dtype]
        }
    report(f"{dtype}: {SAMPLE_BYTES // layout.raw_bytes} chunks a sample, {len(samples)} samples")
    methods = [*lossless_methods(ITEM_BYTES[dtype]), int8_method(layout)]
    timed = time_methods(methods, samples, rounds)
    rows: list[list[object]] = [
        [dtype, "raw", "1.000", "", "", *_load_cells(Timed(1, 0, 0, True), here_bytes_per_s), ""]
    ]
    for method in methods:
        one = timed[method.name]
        speeds = [f"{SAMPLE_BYTES / seconds / 1e9:.2f}" for seconds in (one.encode_s, one.decode_s)]
        verdict = ("gains" if gains(one, here_bytes_per_s) else "no gain") if method.exact else "not exact"
        rows.append(
            [dtype, method.name, f"{one.share:.3f}", *speeds, *_load_cells(one, here_bytes_per_s), verdict]
        )
    wrong = [method.name for method in methods if method.exact and not timed[method.name].same]
    bars.append(Bar(f"{dtype}: lossless methods that lose something", len(wrong), at_most=0))
    bars.append(Bar(f"{dtype}: length of int8 / raw", timed["Codec.INT8"].share, at_most=INT8_SHARE[dtype]))
    quality = [
        {"dtype": dtype, **compare(name, prompts, raw, answers)}
        for name, answers in (
            ("raw", raw),
            ("raw again", again),
            ("computed", cold),
            *others.items(),
        )
    ]
    bars.append(
        Bar(f"{dtype}: share of prompts with a hit", min(map(_hits, (raw, *others.values()))), at_least=1)
    )
    if "lossless" in others:
        changed = sum(one != other for one, other in zip(raw, others["lossless"], strict=True))
        bars.append(
            Bar(f"{dtype}: answers that lossless changes, log-probabilities included", changed, at_most=0)
        )
    return rows, quality, bars


def _hits(answers: Sequence[Answer]) -> float:
    return sum(answer.cached_tokens > 0 for answer in answers) / len(answers)


def _load_cells(timed: Timed, here_bytes_per_s: float) -> list[str]:
    """For each wire, the time of a load and what it is of a raw one's, in turn and overlapped."""
    cells = []
    for bytes_per_s in (here_bytes_per_s, *WIRES.values()):
        one = load(timed, bytes_per_s)
        cells += [
            f"{one.in_turn_s * 1e3:.2f}",
            f"{one.in_turn_s / one.raw_s:.2f}",
            f"{one.overlapped_s / one.raw_s:.2f}",
        ]
    return cells


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _into(decode: Callable[[bytes], bytes]) -> Callable[[bytes | bytearray, Bytes], None]:
    def decode_into(encoded: bytes | bytearray, raw: Bytes) -> None:
        raw[:] = np.frombuffer(decode(bytes(encoded)), np.uint8)

    return decode_into


def _planes_into(
    decode: Callable[[bytes], bytes], item_bytes: int
) -> Callable[[bytes | bytearray, Bytes], None]:
    def decode_into(encoded: bytes | bytearray, raw: Bytes) -> None:
        planes = np.frombuffer(decode(bytes(encoded)), np.uint8).reshape(item_bytes, -1)
        if item_bytes == 2:
            numbers = raw.view(np.uint16)
            np.left_shift(planes[1], np.uint16(8), out=numbers, dtype=np.uint16)
            numbers |= planes[0]
        else:
            raw.reshape(-1, item_bytes)[...] = planes.T

    return decode_into


def _settle(client: redis.Redis) -> None:
    """Until nothing more is stored."""
    last, since_s = -1, time.monotonic()
    while time.monotonic() - since_s < 1:
        held = int(client.dbsize())
        if held != last:
            last, since_s = held, time.monotonic()
        time.sleep(0.1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("kv_codecs", __doc__)
    options.add_argument("--seed", type=int, default=1, help="seed of the prompts (default: 1)")
    chosen = options.parse_args(arguments)
    prepare_environment()
    rounds = QUICK_ROUNDS if chosen.quick else ROUNDS
    with tempfile.TemporaryDirectory() as folder, PrivateRedis(Path(folder)) as server:
        here_bytes_per_s = wire_bytes_per_s(server.url, rounds)
    report(f"verified loads here: {here_bytes_per_s / 1e9:.2f} GB/s")
    prompts = draw_prompts(QUICK_QUESTIONS if chosen.quick else QUESTIONS, chosen.seed)
    bars: list[Bar] = []
    codecs: list[list[object]] = []
    quality: list[dict[str, object]] = []
    for dtype in QUICK_DTYPES if chosen.quick else DTYPES:
        more_codecs, more_quality, more_bars = measure(dtype, prompts, rounds, here_bytes_per_s)
        codecs += more_codecs
        quality += more_quality
        bars += more_bars
    kernels = kernel_errors()
    for packing, kind, error in kernels:
        if isinstance(error, float):
            at_most = 0.51 if kind == "float32" else 0.76  # the rounding of bfloat16 is a quarter of a step
            bars.append(
                Bar(
                    f"vLLM's {packing}, {kind}: largest error beside an outlier, steps",
                    error,
                    at_most=at_most,
                )
            )
    names = [name for wire in ("here", *WIRES) for name in (f"{wire}, ms", "x raw", "overlapped")]
    columns = ["dtype", "codec", "length", "enc GB/s", "dec GB/s", *names, ""]
    print_table(columns, codecs)
    missing = [name for name in ("zstandard", "lz4", "isal") if not _installed(name)]
    print("x raw: of a raw load's time. overlapped: the same with the decoding on a second core.")
    print(f"not installed, not measured: {', '.join(missing) or 'nothing'}")
    print_table(list(quality[0]), [list(row.values()) for row in quality])
    print_table(("packing", "dtype", "largest error beside an outlier, steps"), kernels)
    return finish(
        bars,
        {
            "here_bytes_per_s": here_bytes_per_s,
            "columns": columns,
            "codecs": codecs,
            "quality": quality,
            "kernels": kernels,
        },
        chosen.json,
    )


if __name__ == "__main__":
    sys.exit(main())
