"""Logit experts: a small model shifts the served model's logits while it decodes.

    logits + alpha * (expert's - anti-expert's)

Source: proxy tuning (Liu et al. 2024, arXiv 2401.08565).

`LogitExperts` is a vLLM logits processor. Its models read in `apply`: under async scheduling, vLLM puts the
sampled tokens into a request's running list only just before `apply`. vLLM gives a row to every request in
the batch, also while the request's prompt is not computed to its end. vLLM throws the sample of such a row
away, so that the last shift is used again there. vLLM takes the logprobs that it returns before any logits
processor runs. It refuses custom logits processors together with speculative decoding.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from memserve.domain.names import is_sha256
from memserve.worker.kv.cartridges import CartridgeUse
from memserve.worker.kv.vllm_internals import logits_processors
from memserve.worker.modules.kinds.causal_model import CausalModel, KvState
from memserve.worker.modules.kinds.embedded import embedded_tokens

PARAMETERS = "memserve_expert"
"""Key of SamplingParams.extra_args: {"digest", "alpha", "path"}."""
LIMIT = "memserve_expert_limit"
"""Key of vLLM's additional_config: how many experts an engine keeps loaded."""
PROCESSOR = "memserve.worker.modules.kinds.logit_expert:LogitExperts"
"""For AsyncEngineArgs.logits_processors."""
WORKER_EXTENSION = "memserve.worker.modules.kinds.logit_expert.ExpertLoading"
"""For AsyncEngineArgs.worker_extension_cls."""
MAX_ALPHA = 10.0
_POLL_S = 0.02


def expert_parameters(digest: str, alpha: float, path: str) -> dict[str, Any]:
    """The entries of a request's extra_args for an expert.

    path: of the module's folder, as the engine's process sees it.
    """
    return {PARAMETERS: {"digest": digest, "alpha": alpha, "path": path}}


async def load_expert(llm: Any, digest: str, path: str) -> None:
    """Load an expert into a running AsyncLLM, while it serves.

    Raises ValueError with the reason when the engine refuses the expert.
    """
    while None in (answers := await llm.collective_rpc("load_expert", args=(digest, path))):
        await asyncio.sleep(_POLL_S)
    if refusal := next(filter(None, answers), ""):
        raise ValueError(refusal)


@dataclass(frozen=True, slots=True)
class Served:
    """The model that the engine serves."""

    path: Path
    """The folder of its files."""
    vocab_size: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, eq=False)
class Expert:
    """The models of one expert."""

    own: CausalModel
    anti: CausalModel | None
    """The anti-expert. None: the shift is the expert's own log-probabilities."""


class ExpertShelf:
    """The experts that an engine holds.

    A separate thread reads them, so that the engine's thread goes on with its steps.
    """

    def __init__(self, served: Served, limit: int) -> None:
        self._served = served
        self._limit = limit
        # By digest, least recently used first.
        self._experts: dict[str, Future[Expert]] = {}
        self._base: CausalModel | None = None
        self._reader = ThreadPoolExecutor(1, "expert-reader")

    def ask(self, digest: str, path: str, in_use: Collection[str]) -> str | None:
        """Load an expert, unless it is loaded.

        in_use: digests of experts that must stay.
        Returns None while the expert is being read, "" when it can be used, and else why it cannot be used.
        """
        if digest not in self._experts and self._limit <= len(in_use):
            return f"all {self._limit} experts of this engine are in use"
        reading = self._touch(digest, path, in_use)
        if not reading.done():
            return None
        if (error := reading.exception()) is not None:
            self.drop(digest)
            return str(error)
        return ""

    def get(self, digest: str, path: str, in_use: Collection[str]) -> Expert:
        """The expert. Waits for its files when it is not loaded, and raises ValueError when they are wrong.

        An expert may have been dropped after its request was accepted.
        """
        return self._touch(digest, path, in_use).result()

    def drop(self, digest: str) -> bool:
        """Let an expert go. The base model goes with the last expert.

        Returns whether the shelf had the expert.
        """
        gone = self._experts.pop(digest, None)
        if not self._experts:
            self._base = None
        return gone is not None

    def loaded(self) -> list[str]:
        """Digests of the experts that can be used, least recently used first."""
        return [
            digest
            for digest, reading in self._experts.items()
            if reading.done() and reading.exception() is None
        ]

    def _touch(self, digest: str, path: str, in_use: Collection[str]) -> Future[Expert]:
        reading = self._experts.pop(digest, None) or self._reader.submit(self._read, Path(path))
        self._experts[digest] = reading
        unused = [each for each in self._experts if each != digest and each not in in_use]
        for each in unused[: max(0, len(self._experts) - self._limit)]:
            self.drop(each)
        return reading

    def _read(self, folder: Path) -> Expert:
        try:
            document = json.loads((folder / "expert_config.json").read_text(encoding="utf-8"))
            anti_kind: Literal["none", "base", "file"] = document["anti_expert"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"expert_config.json cannot be read: {error!r}") from error
        own = self._model(folder, [folder / "model.safetensors"])
        if anti_kind == "none":
            return Expert(own, None)
        if anti_kind == "file":
            return Expert(own, self._model(folder, [folder / "anti_model.safetensors"]))
        if anti_kind == "base":
            # vLLM's own copy of the base model has LoRA layers in it, and its matrices are packed. So the
            # base model is read once more, for all experts together.
            self._base = self._base or self._model(
                self._served.path, sorted(self._served.path.glob("*.safetensors"))
            )
            return Expert(own, self._base)
        raise ValueError(f"anti_expert {anti_kind!r} is none of none, base, file")

    def _model(self, folder: Path, files: Sequence[Path]) -> CausalModel:
        model = CausalModel.load(folder, files, self._served.dtype, self._served.device)
        if model.vocab_size != self._served.vocab_size:
            raise ValueError(
                f"its vocabulary has {model.vocab_size} tokens, the served model's {self._served.vocab_size}"
            )
        return model


@dataclass(eq=False)
class Reader:
    """One model that reads one request's tokens."""

    model: CausalModel
    state: KvState = field(default_factory=KvState)
    logits: Tensor | None = None
    """[vocab_size], after the last token that it has read."""


@dataclass(eq=False)
class Followed:
    """A request in the batch that an expert follows."""

    digest: str
    """Of the expert."""
    alpha: float
    prompt: list[int]
    outputs: list[int]
    """vLLM's running list of the request's output tokens. vLLM adds to it as it samples."""
    own: Reader
    anti: Reader | None
    read: list[int] = field(default_factory=list)
    """The output tokens that the models have read."""

    @property
    def readers(self) -> list[Reader]:
        return [self.own] if self.anti is None else [self.own, self.anti]

    def unread(self) -> list[int]:
        """The tokens that the models have to read next. They count as read from this call on.

        Empty when vLLM has sampled nothing since the last call. vLLM takes tokens back that it sampled on KV
        that failed to load. They are then taken back from the models' KV too.
        """
        if self.own.logits is None:
            self.read = list(self.outputs)
            return [*self.prompt, *self.outputs]
        known = len(self.read)
        if self.outputs[:known] != self.read:
            known = next(
                (
                    at
                    for at, pair in enumerate(zip(self.read, self.outputs, strict=False))
                    if pair[0] != pair[1]
                ),
                len(self.outputs),
            )
            # The models read the last token that stays again, to have its logits.
            for reader in self.readers:
                reader.state.length = len(self.prompt) + known - 1
            self.read = list(self.outputs)
            return [*self.prompt, *self.outputs][len(self.prompt) + known - 1 :]
        fresh = self.outputs[known:]
        self.read += fresh
        return fresh

    def shift(self) -> Tensor:
        """What is added to the request's row of logits, float32 [vocab_size]."""
        assert self.own.logits is not None
        if self.anti is None:
            return self.alpha * self.own.logits.log_softmax(-1)
        assert self.anti.logits is not None
        return self.alpha * (self.own.logits - self.anti.logits)


class LogitExperts(LogitsProcessor):
    """Shifts the rows of the requests that name an expert. Other rows stay as they are.

    A request that leaves the batch, because it is done or preempted, loses its state. When it comes back, its
    prompt and its outputs are read again.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        model = vllm_config.model_config
        served = Served(Path(model.model), model.get_vocab_size(), model.dtype, torch.device(device))
        self.shelf = ExpertShelf(served, vllm_config.additional_config.get(LIMIT, 1))
        self._followed: dict[int, Followed] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Check a request's parameters. Raises ValueError, upon which the engine refuses the request."""
        wanted = (sampling_params.extra_args or {}).get(PARAMETERS)
        if wanted is None:
            return
        if not isinstance(wanted, dict) or set(wanted) != {"digest", "alpha", "path"}:
            raise ValueError(f"{PARAMETERS} must have digest, alpha and path, and nothing else")
        digest, alpha, path = wanted["digest"], wanted["alpha"], wanted["path"]
        if not isinstance(digest, str) or not is_sha256(digest):
            raise ValueError(f"{PARAMETERS}.digest must be 64 hexadecimal digits")
        if (
            isinstance(alpha, bool)
            or not isinstance(alpha, int | float)
            or not math.isfinite(alpha)
            or abs(alpha) > MAX_ALPHA
        ):
            raise ValueError(f"{PARAMETERS}.alpha must be a number from -{MAX_ALPHA:g} to {MAX_ALPHA:g}")
        if not isinstance(path, str) or not (Path(path) / "expert_config.json").is_file():
            raise ValueError(f"{PARAMETERS}.path is not the folder of a logit expert")

    def is_argmax_invariant(self) -> bool:
        return False

    @property
    def in_use(self) -> set[str]:
        """Digests of the experts that requests in the batch use."""
        return {each.digest for each in self._followed.values()}

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the changes of vLLM's batch: removals, then additions, then moves.

        An addition may take an occupied row.
        """
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._followed.pop(row, None)
        for row, params, prompt, outputs in batch_update.added:
            self._followed.pop(row, None)
            wanted = (params.extra_args or {}).get(PARAMETERS)
            if wanted and wanted["alpha"]:
                self._followed[row] = self._follow(wanted, read_prompt(prompt or [], params), outputs)
        for source, target, direction in batch_update.moved:
            moved, replaced = self._followed.pop(source, None), self._followed.pop(target, None)
            if moved is not None:
                self._followed[target] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                self._followed[source] = replaced

    def _follow(self, wanted: dict[str, Any], prompt: list[int], outputs: list[int]) -> Followed:
        expert = self.shelf.get(wanted["digest"], wanted["path"], self.in_use)
        anti = Reader(expert.anti) if expert.anti is not None else None
        return Followed(wanted["digest"], float(wanted["alpha"]), prompt, outputs, Reader(expert.own), anti)

    @torch.inference_mode()
    def apply(self, logits: Tensor) -> Tensor:
        """Shift the logits. Every model reads the new tokens of all its requests at once.

        logits: float32 [requests in the batch, vocab_size]. They are changed in place.
        """
        if not self._followed:
            return logits
        work: dict[CausalModel, list[tuple[Reader, list[int]]]] = {}
        for each in self._followed.values():
            if unread := each.unread():
                for reader in each.readers:
                    work.setdefault(reader.model, []).append((reader, unread))
        for model, readings in work.items():
            made = model.read([(reader.state, unread) for reader, unread in readings])
            for (reader, _), row in zip(readings, made, strict=True):
                reader.logits = row
        logits[list(self._followed)] += torch.stack([each.shift() for each in self._followed.values()])
        return logits


def read_prompt(prompt: list[int], params: SamplingParams) -> list[int]:
    """What an expert reads of a prompt: all but the placeholders of a cartridge or a soft prompt, which stand
    for no text."""
    use = CartridgeUse.of((params.extra_args or {}).get("kv_transfer_params"))
    return prompt[embedded_tokens(params.extra_args) if use is None else use.tokens :]


class ExpertLoading:
    """Methods of a vLLM worker for experts, called by `collective_rpc`.

    They run between two steps of the engine, so that none of them waits for a file.
    """

    model_runner: Any

    def load_expert(self, digest: str, path: str) -> str | None:
        """Begin to load an expert, or tell how far it is. Returns as `ExpertShelf.ask`."""
        experts = self._logit_experts()
        return experts.shelf.ask(digest, path, experts.in_use)

    def unload_expert(self, digest: str) -> bool:
        """Let an expert go unless it is in use. Returns whether it is gone."""
        experts = self._logit_experts()
        if digest in experts.in_use:
            return False
        experts.shelf.drop(digest)
        return True

    def loaded_experts(self) -> list[str]:
        """As `ExpertShelf.loaded`."""
        return self._logit_experts().shelf.loaded()

    def _logit_experts(self) -> LogitExperts:
        found = (each for each in logits_processors(self.model_runner) if isinstance(each, LogitExperts))
        return next(found)
