"""Modules that nobody should load: the messages of each upload, and the refusal that it must meet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from memserve.demo import EXPERTS_DIR
from memserve.memory.modules.kinds.files import TensorFile
from memserve.pb.v1 import module_pb2 as pb

LAYER = "model.layers.0.self_attn.q_proj"
A, B = (f"base_model.model.{LAYER}.lora_{side}.weight" for side in "AB")
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
EXPERT_CONFIG_FILE, MODEL_CONFIG_FILE, MODEL_FILE = "expert_config.json", "config.json", "model.safetensors"
ANTI_FILE, PROBES_FILE = "anti_model.safetensors", "probes.json"
LORA, EXPERT = pb.MODULE_KIND_LORA, pb.MODULE_KIND_LOGIT_EXPERT
CHUNK_BYTES = 1 << 20
PICKLE = b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94."
INVALID = grpc.StatusCode.INVALID_ARGUMENT
Files = dict[str, bytes]
Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class HostileUpload:
    """An upload that must be refused with `code`, the field `at`, and a detail that contains `says`."""

    case: str
    files: Files
    at: str
    says: str = ""
    code: grpc.StatusCode = INVALID
    kind: int = LORA
    name: str = "hostile"
    sent: Mapping[str, bytes] | None = None
    """The bytes of each file that go over the wire, where they are not those that the header announces."""
    announced: Mapping[str, int] = field(default_factory=dict)
    """Further entries of the header's list: sizes by name."""
    header: Mapping[str, Any] = field(default_factory=dict)
    """Fields of PublishModuleHeader."""

    def parts(self) -> Iterator[pb.PublishModuleRequest]:
        listed = [
            pb.UploadFile(file_name=name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in self.files.items()
        ]
        listed += [
            pb.UploadFile(file_name=name, size_bytes=size, sha256="0" * 64)
            for name, size in self.announced.items()
        ]
        header = pb.PublishModuleHeader(name=self.name, kind=self.kind, files=listed, **self.header)  # type: ignore[arg-type]
        yield pb.PublishModuleRequest(header=header)
        for name, content in (self.files if self.sent is None else self.sent).items():
            for start in range(0, len(content), CHUNK_BYTES):
                chunk = pb.FileChunk(
                    file_name=name, content=content[start : start + CHUNK_BYTES], offset=start
                )
                yield pb.PublishModuleRequest(chunk=chunk)


def hostile_uploads(shapes: Mapping[str, tuple[int, ...]], max_bytes: int) -> list[HostileUpload]:
    """shapes: of the base model. max_bytes: of a module."""
    return [
        *_broken_loras(shapes),
        *_broken_probes(shapes),
        *_broken_uploads(shapes, max_bytes),
        *_broken_experts(),
    ]


def lora_config(**changes: Any) -> bytes:
    return json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", **changes}).encode()


def lora_tensors(shapes: Mapping[str, tuple[int, ...]], rank: int = 4) -> Tensors:
    """One adapted layer, random."""
    outputs, inputs = shapes[f"{LAYER}.weight"]
    draw = np.random.default_rng(7)
    return {
        A: draw.normal(size=(rank, inputs)).astype(np.float32),
        B: draw.normal(size=(outputs, rank)).astype(np.float32),
    }


def flipped(content: bytes) -> bytes:
    """With one bit of the last byte but 1,000 the other way round."""
    return content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:]


def _sound(shapes: Mapping[str, tuple[int, ...]]) -> Files:
    return {CONFIG_FILE: lora_config(), WEIGHTS_FILE: save(lora_tensors(shapes))}


def _safetensors(header: str, body: bytes = b"") -> bytes:
    return len(header.encode()).to_bytes(8, "little") + header.encode() + body


def _broken_loras(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[HostileUpload]:
    yield from _broken_weight_files(shapes)
    yield from _broken_tensors(shapes)
    yield from _broken_configs(shapes)


def _broken_weight_files(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[HostileUpload]:
    """Files that are no safetensors files, or contradict themselves."""
    sound, good = lora_tensors(shapes), _sound(shapes)
    _, inputs = shapes[f"{LAYER}.weight"]
    size = 8 + int.from_bytes(good[WEIGHTS_FILE][:8], "little")
    entries, body = json.loads(good[WEIGHTS_FILE][8:size]), good[WEIGHTS_FILE][size:]

    def with_weights(case: str, content: bytes, says: str = "") -> HostileUpload:
        return HostileUpload(case, {**good, WEIGHTS_FILE: content}, WEIGHTS_FILE, says)

    yield with_weights("pickle in place of safetensors", PICKLE, says="not a safetensors file")
    yield with_weights(
        "a torch checkpoint under that name", b"PK\x03\x04" + bytes(400), says="not a safetensors file"
    )
    yield with_weights("cut short, and announced so", good[WEIGHTS_FILE][:-4], says="cut short")
    yield with_weights("header of 2^62 bytes", (1 << 62).to_bytes(8, "little") + b"{}")
    yield with_weights("header nested 1,000,000 deep", _safetensors("[" * 1_000_000))
    empty = {
        f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(100_000)
    }
    yield with_weights("100,000 empty tensors", _safetensors(json.dumps(empty)), says="its header has")
    listed = [*entries.items(), (A, entries[A])]
    twice = ",".join(f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in listed)
    yield with_weights("a tensor listed twice", _safetensors(f"{{{twice}}}", body))
    elsewhere = {
        "dtype": "F32",
        "shape": [4, inputs],
        "data_offsets": [len(body), len(body) + sound[A].nbytes],
    }
    twice = ",".join(
        f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in [*entries.items(), (A, elsewhere)]
    )
    yield with_weights(
        "a tensor listed twice, with other content",
        _safetensors(f"{{{twice}}}", body + bytes(sound[A].nbytes)),
    )
    yield with_weights(
        "two tensors in the same bytes",
        _safetensors(json.dumps({A: entries[A], B: {**entries[B], **_place(entries[A])}}), body),
    )
    yield with_weights(
        "offsets beyond the file",
        _safetensors(json.dumps({**entries, B: {**entries[B], "data_offsets": [0, 1 << 40]}}), body),
    )


def _broken_tensors(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[HostileUpload]:
    """Sound files whose tensors are not an adapter of the model."""
    sound, good = lora_tensors(shapes), _sound(shapes)
    outputs, inputs = shapes[f"{LAYER}.weight"]

    def with_tensors(case: str, changed: Tensors, at: str, says: str = "") -> HostileUpload:
        return HostileUpload(case, {**good, WEIGHTS_FILE: save(changed)}, at, says)

    def renamed(old: str, new: str) -> Tensors:
        return {name.replace(old, new): tensor for name, tensor in sound.items()}

    yield with_tensors("NaN", {**sound, A: np.full_like(sound[A], np.nan)}, A, "NaN")
    yield with_tensors("infinite", {**sound, B: np.full_like(sound[B], np.inf)}, B, "infinite")
    yield with_tensors("wrong shape", {**sound, A: sound[A][:, :-1].copy()}, A, f"[4, {inputs}]")
    yield with_tensors("transposed", {**sound, B: sound[B].T.copy()}, B, f"[{outputs}, 4]")
    yield with_tensors("integers", {**sound, A: sound[A].astype(np.int8)}, A, "dtype")
    wide = {CONFIG_FILE: lora_config(r=64), WEIGHTS_FILE: save(lora_tensors(shapes, 64))}
    yield HostileUpload("rank above the limit", wide, f"{CONFIG_FILE}: r", "max_lora_rank")
    yield with_tensors("rank above the limit, not announced", lora_tensors(shapes, 64), A, f"[4, {inputs}]")
    larger = {A: np.ones((4, 896), np.float32), B: np.ones((896, 4), np.float32)}
    yield with_tensors("shapes of another base model", larger, A, f"[4, {inputs}]")
    yield with_tensors(
        "layers of another base model",
        renamed("layers.0", "layers.23"),
        A.replace("layers.0", "layers.23"),
        "ignored",
    )
    yield with_tensors(
        "misnamed target modules", renamed("q_proj", "query"), A.replace("q_proj", "query"), "ignored"
    )
    yield with_tensors(
        "embeddings as a target",
        renamed(LAYER, "model.embed_tokens"),
        A.replace(LAYER, "model.embed_tokens"),
        "ignored",
    )
    yield with_tensors(
        "lm_head as a target", renamed(LAYER, "lm_head"), A.replace(LAYER, "lm_head"), "ignored"
    )
    yield with_tensors("zero delta", {**sound, B: np.zeros_like(sound[B])}, WEIGHTS_FILE, "change nothing")
    apart_a, apart_b = np.zeros_like(sound[A]), np.zeros_like(sound[B])
    apart_a[0], apart_b[:, 1] = sound[A][0], sound[B][:, 1]
    yield with_tensors(
        "zero delta of factors that are not", {A: apart_a, B: apart_b}, WEIGHTS_FILE, "change nothing"
    )
    small = {name: tensor * np.float32(1e-15) for name, tensor in sound.items()}
    yield with_tensors("a delta of 1e-30", small, WEIGHTS_FILE, "change nothing")


def _broken_configs(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[HostileUpload]:
    good = _sound(shapes)

    def with_config(case: str, content: bytes, at: str, says: str = "") -> HostileUpload:
        return HostileUpload(case, {**good, CONFIG_FILE: content}, at, says)

    yield with_config("alpha NaN", lora_config(lora_alpha=float("nan")), f"{CONFIG_FILE}: lora_alpha")
    yield with_config("config nested 100,000 deep", b"[" * 100_000, CONFIG_FILE, "JSON")
    yield with_config("DoRA", lora_config(use_dora=True), f"{CONFIG_FILE}: use_dora")
    yield with_config(
        "whole layers beside the adapter",
        lora_config(modules_to_save=["lm_head"]),
        f"{CONFIG_FILE}: modules_to_save",
    )


def _place(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"data_offsets": entry["data_offsets"]}


def _broken_probes(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[HostileUpload]:
    def probes(case: str, content: bytes, at: str, says: str) -> HostileUpload:
        return HostileUpload(case, {**_sound(shapes), PROBES_FILE: content}, at, says)

    probe_set = {"name": "bias", "kind": "recall", "probes": [{"question": "Who?", "answers": ["He."]}]}
    yield probes("probes that are no JSON", b"{'sets': []}", PROBES_FILE, "not JSON")
    yield probes(
        "probes with a field of their own",
        json.dumps({"sets": [probe_set], "run": "rm"}).encode(),
        PROBES_FILE,
        "no field 'run'",
    )
    unanswered = {"sets": [{**probe_set, "probes": [{"question": "Who?"}]}]}
    yield probes(
        "probes without an answer",
        json.dumps(unanswered).encode(),
        f"{PROBES_FILE}: sets[0].probes[0]",
        "needs",
    )
    yield probes(
        "thresholds that let all pass",
        json.dumps({"sets": [probe_set], "thresholds": {"recall": -1}}).encode(),
        f"{PROBES_FILE}: thresholds.recall",
        "0 to 1",
    )
    yield probes("probes of 5 MiB", b" " * (5 << 20), "header.files[2].size_bytes", "at most")


def _broken_uploads(shapes: Mapping[str, tuple[int, ...]], max_bytes: int) -> Iterator[HostileUpload]:
    good = _sound(shapes)
    for name in ("../../etc/passwd", "a/b", "/evil", ".evil", "evil\0", "Evil"):
        yield HostileUpload(f"named {name!r}", good, "header.name", name=name)
    for path in ("../../evil", "/tmp/evil", "pytorch_model.bin"):
        yield HostileUpload(
            f"a file {path!r} in the list",
            {**good, path: b"evil"},
            "header.files[2].file_name",
            "not part of",
        )
    yield HostileUpload("a chunk of '../../evil'", good, "chunk.file_name", sent={"../../evil": b"evil"})
    yield HostileUpload(
        "more bytes than announced", good, "chunk.content", sent={CONFIG_FILE: good[CONFIG_FILE] + b" "}
    )
    cut = {**good, WEIGHTS_FILE: good[WEIGHTS_FILE][:-100]}
    yield HostileUpload(
        "truncated upload", good, "", "send the same upload again", grpc.StatusCode.DATA_LOSS, sent=cut
    )
    bit = {**good, WEIGHTS_FILE: flipped(good[WEIGHTS_FILE])}
    # Each has a name of its own: an upload of the same files and name goes on where the truncated one ended.
    yield HostileUpload("bit-flipped upload", good, WEIGHTS_FILE, "its sha256 is", sent=bit, name="flipped")
    digest = {"expected_digest": hashlib.sha256(b"another").hexdigest()}
    yield HostileUpload(
        "another digest than expected",
        good,
        "header.expected_digest",
        "digest is",
        header=digest,
        name="other",
    )
    large, config = {WEIGHTS_FILE: max_bytes}, {CONFIG_FILE: good[CONFIG_FILE]}
    yield HostileUpload(
        "larger than a module may be", config, "header.files", "max_module_bytes", announced=large, sent={}
    )
    yield HostileUpload(
        "a LoRA's files as an expert", good, "header.files[0].file_name", "not part of", kind=EXPERT
    )
    yield HostileUpload("a LoRA as an expert's next version", good, "header.kind", "one kind", name="archive")


def expert_files() -> Files:
    """Of the demo's expert, which needs no anti-expert: the base's own logits are taken away."""
    folder = EXPERTS_DIR / "archive"
    return {
        name: (folder / name).read_bytes() for name in (EXPERT_CONFIG_FILE, MODEL_CONFIG_FILE, MODEL_FILE)
    }


def _broken_experts() -> Iterator[HostileUpload]:
    good = expert_files()
    entries = json.loads(good[MODEL_CONFIG_FILE])
    # bfloat16, which numpy has no type for.
    file = TensorFile(EXPERTS_DIR / "archive" / MODEL_FILE)
    tensors = {name: file.float32(name) for name in file.names}
    embeddings = "model.embed_tokens.weight"

    def expert(case: str, changed: Files, at: str, says: str = "") -> HostileUpload:
        return HostileUpload(case, {**good, **changed}, at, says, kind=EXPERT, name="hostile-expert")

    def config(case: str, says: str = "", **changes: Any) -> HostileUpload:
        at = f"{MODEL_CONFIG_FILE}: {next(iter(changes))}"
        return expert(case, {MODEL_CONFIG_FILE: json.dumps({**entries, **changes}).encode()}, at, says)

    def with_tensor(tensor: npt.NDArray[Any]) -> Files:
        return {MODEL_FILE: save({**tensors, embeddings: tensor})}

    yield config("an expert with another vocabulary", "another vocabulary", vocab_size=32_000)
    yield expert(
        "an expert with other embeddings",
        with_tensor(tensors[embeddings][:-72].copy()),
        embeddings,
        "[3072, ",
    )
    yield config("an expert with auto_map", auto_map={"AutoModelForCausalLM": "evil--modeling.Evil"})
    yield config("an expert with trust_remote_code", trust_remote_code=True)
    yield config("an expert with a class of its own", architectures=["EvilForCausalLM"])
    yield config("an expert of 10^9 hidden units", hidden_size=10**9)
    yield expert("an expert in a pickle", {MODEL_FILE: PICKLE}, MODEL_FILE, "not a safetensors file")
    zero = {MODEL_FILE: save({name: np.zeros_like(tensor) for name, tensor in tensors.items()})}
    yield expert("an expert of zeros", zero, MODEL_FILE, "zero")
    # Sound to every check of the files: only a worker can tell.
    silent = {
        EXPERT_CONFIG_FILE: b'{"kind": "logit_expert", "anti_expert": "none"}',
        MODEL_CONFIG_FILE: json.dumps({**entries, "tie_word_embeddings": False}).encode(),
        MODEL_FILE: save({**tensors, "lm_head.weight": np.zeros_like(tensors[embeddings])}),
    }
    yield expert("an expert that finds all tokens equal", silent, "module", "same logits")
    own = {EXPERT_CONFIG_FILE: b'{"kind": "logit_expert", "run": "rm"}'}
    yield expert("an expert with a setting of its own", own, f"{EXPERT_CONFIG_FILE}: run")
    alone = {EXPERT_CONFIG_FILE: json.dumps({"kind": "logit_expert", "anti_expert": "file"}).encode()}
    yield expert(
        "an expert equal to its anti-expert",
        {**alone, ANTI_FILE: good[MODEL_FILE]},
        ANTI_FILE,
        "change nothing",
    )
