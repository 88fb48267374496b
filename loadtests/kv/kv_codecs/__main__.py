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

A codec's cost to answers: the same questions are asked again of an engine that has forgotten everything but
the KV in Redis. An engine that stores raw is asked twice more: what differs then is not a codec's doing. Then
an engine of each other codec is asked. A lossless codec must change nothing. The table shows what int8 does.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.harness.engines import prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.redis_server import PrivateRedis
from loadtests.kv.kv_codecs.answers import Answers, ask_every_codec, compare, share_with_hit
from loadtests.kv.kv_codecs.engine import chunk_layout
from loadtests.kv.kv_codecs.kernels import kernel_errors
from loadtests.kv.kv_codecs.loads import SAMPLE_BYTES, WIRES, gains, load_cells, wire_bytes_per_s
from loadtests.kv.kv_codecs.methods import (
    Method,
    Timed,
    int8_method,
    is_installed,
    lossless_methods,
    time_methods,
)
from loadtests.kv.kv_codecs.prompts import Prompt, draw_prompts
from memserve.kv.values.envelope import Codec

DTYPES, QUICK_DTYPES = ("float32", "bfloat16"), ("bfloat16",)
ITEM_BYTES = {"float32": 4, "bfloat16": 2}
INT8_SHARE = {"float32": 0.28, "bfloat16": 0.55}
QUESTIONS, QUICK_QUESTIONS = 200, 40
ROUNDS, QUICK_ROUNDS = 15, 3
# Codecs whose engines are asked, beside raw.
ANSWERED_CODECS: dict[str, tuple[Codec, ...]] = {
    "float32": (Codec.INT8,),
    "bfloat16": (Codec.LOSSLESS, Codec.INT8),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one dtype: the rows of the codecs, the rows of the answers, and the bars."""

    codecs: list[list[object]]
    quality: list[dict[str, object]]
    bars: list[Bar]


def measure(dtype: str, prompts: Sequence[Prompt], rounds: int, here_bytes_per_s: float) -> Measured:
    asked = ask_every_codec(dtype, prompts, ANSWERED_CODECS[dtype])
    methods = [*lossless_methods(ITEM_BYTES[dtype]), int8_method(chunk_layout(dtype))]
    timed = time_methods(methods, asked.samples, rounds)
    quality = [
        {"dtype": dtype, **compare(name, prompts, asked.raw, answers)}
        for name, answers in (
            ("raw", asked.raw),
            ("raw again", asked.raw_again),
            ("computed", asked.computed),
            *asked.others.items(),
        )
    ]
    return Measured(
        codec_rows(dtype, methods, timed, here_bytes_per_s), quality, bars_of(dtype, asked, methods, timed)
    )


def codec_rows(
    dtype: str, methods: Sequence[Method], timed: Mapping[str, Timed], here_bytes_per_s: float
) -> list[list[object]]:
    rows: list[list[object]] = [
        [dtype, "raw", "1.000", "", "", *load_cells(Timed(1, 0, 0, True), here_bytes_per_s), ""]
    ]
    for method in methods:
        own = timed[method.name]
        speeds = [f"{SAMPLE_BYTES / seconds / 1e9:.2f}" for seconds in (own.encode_s, own.decode_s)]
        verdict = ("gains" if gains(own, here_bytes_per_s) else "no gain") if method.exact else "not exact"
        rows.append(
            [dtype, method.name, f"{own.share:.3f}", *speeds, *load_cells(own, here_bytes_per_s), verdict]
        )
    return rows


def bars_of(dtype: str, asked: Answers, methods: Sequence[Method], timed: Mapping[str, Timed]) -> list[Bar]:
    bars = []
    if asked.arrangement_error is not None:
        bars.append(
            Bar(
                "K and V where the layout says, largest difference from transformers'",
                asked.arrangement_error,
                at_most=1e-3,
            )
        )
    wrong = [method.name for method in methods if method.exact and not timed[method.name].same]
    hits = min(map(share_with_hit, (asked.raw, *asked.others.values())))
    bars += [
        Bar(f"{dtype}: lossless methods that lose something", len(wrong), at_most=0),
        Bar(f"{dtype}: length of int8 / raw", timed["Codec.INT8"].share, at_most=INT8_SHARE[dtype]),
        Bar(f"{dtype}: share of prompts with a hit", hits, at_least=1),
    ]
    if "lossless" in asked.others:
        changed = sum(mine != other for mine, other in zip(asked.raw, asked.others["lossless"], strict=True))
        bars.append(
            Bar(f"{dtype}: answers that lossless changes, log-probabilities included", changed, at_most=0)
        )
    return bars


def kernel_bars(kernels: Sequence[Sequence[object]]) -> list[Bar]:
    """kernels: rows of `kernel_errors`."""
    return [
        Bar(
            f"vLLM's {packing}, {dtype}: largest error beside an outlier, steps",
            error,
            # The rounding of bfloat16 is a quarter of a step.
            at_most=0.51 if dtype == "float32" else 0.76,
        )
        for packing, dtype, error in kernels
        if isinstance(error, float)
    ]


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
    dtypes = QUICK_DTYPES if chosen.quick else DTYPES
    measured = [measure(dtype, prompts, rounds, here_bytes_per_s) for dtype in dtypes]
    kernels = kernel_errors()
    bars = [bar for of_dtype in measured for bar in of_dtype.bars] + kernel_bars(kernels)
    codecs = [row for of_dtype in measured for row in of_dtype.codecs]
    quality = [row for of_dtype in measured for row in of_dtype.quality]
    names = [name for wire in ("here", *WIRES) for name in (f"{wire}, ms", "x raw", "overlapped")]
    columns = ["dtype", "codec", "length", "enc GB/s", "dec GB/s", *names, ""]
    print_table(columns, codecs)
    missing = [name for name in ("zstandard", "lz4", "isal") if not is_installed(name)]
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
