"""The calls that train: what composing and distilling say, as messages of `memserve.worker.v1`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from memserve.domain import DistilProgress, Recipe
from memserve.domain.kinds import kind_of_name
from memserve.errors import InvalidField, InvalidModule, MemserveError
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.policy.modules.recipes import check_budget, check_recipe
from memserve.policy.modules.selection import check_texts
from memserve.worker.training.compose import Composed, Progress
from memserve.worker.training.distil.kept import KeptTrainings
from memserve.worker.training.distil.order import Distilled, DistilOrder
from memserve.worker.training.distil.ray_task import distil_in_ray
from memserve.worker.training.parent import Parent

FILE_CHUNK_BYTES = 1 << 20
DISTILLED_KINDS = ("lora", "cartridge")


class Distilling(MemserveError):
    """The worker distils for another call."""

    def __init__(self) -> None:
        super().__init__("this worker distils something else now; ask again when that has ended")


@dataclass(frozen=True, slots=True)
class TrainingPlace:
    """What trainings on a worker begin from."""

    model: Path
    model_digest: str
    checkpoints: Path
    """The folder of the checkpoints of trainings that have not ended."""
    chat_template: Path | None = None
    block_tokens: int = 32


class Trainings:
    """One distillation at a time."""

    def __init__(self, place: TrainingPlace) -> None:
        self._place = place
        self._under_way = asyncio.Lock()
        self._kept = KeptTrainings(place.checkpoints)

    async def distil(
        self, request: pb.DistilModuleRequest, files: Callable[[str], Awaitable[Path]]
    ) -> AsyncGenerator[pb.DistilModuleResponse, None]:
        """files: the folder of a module, by its digest.

        Raises InvalidModule for what cannot be distilled, Distilling, DistilTaskLost, and ValueError for a
        kind that nobody knows.
        """
        kind = kind_of_name(request.kind)
        if kind not in DISTILLED_KINDS:
            raise InvalidModule("kind", f"{kind} cannot be distilled; {', '.join(DISTILLED_KINDS)} can")
        if self._under_way.locked():
            raise Distilling
        digest = request.parent_digest
        if digest and kind != "lora":
            raise InvalidModule("parent_digest", "only a LoRA is trained on")
        if request.old_texts:
            _check_old(request)
        order = DistilOrder(
            model=self._place.model,
            texts=tuple(request.texts),
            kind=kind,
            recipe=_recipe(request),
            seed=request.seed,
            budget_s=request.budget_s,
            chat_template=self._place.chat_template,
            recall_template=request.recall_template,
            base_digest=self._place.model_digest,
            block_tokens=self._place.block_tokens,
            parent=Parent(digest, await files(digest)) if digest else None,
            old_texts=tuple(request.old_texts),
        )
        if self._under_way.locked():
            # Another call has come first while the parent's files did.
            raise Distilling
        async with self._under_way:
            # Entered before the task begins, and left after it has ended, whose folder then may go.
            with self._kept.noting(order.digest, request.memory_keys):
                async with contextlib.aclosing(distil_in_ray(order, self._place.checkpoints)) as events:
                    async for event in events:
                        for response in _distilling(event):
                            yield response

    async def forget(self, keys: Iterable[str]) -> int:
        """Remove what is kept of trainings with one of these memories. Returns how many they were."""
        return await asyncio.to_thread(self._kept.forget, frozenset(keys))


def _distilling(event: DistilProgress | Distilled) -> Iterator[pb.DistilModuleResponse]:
    """An event of a distillation as messages."""
    if isinstance(event, DistilProgress):
        yield pb.DistilModuleResponse(progress=_progress(event))
        return
    for file in _files(event.files):
        yield pb.DistilModuleResponse(file=file)
    yield pb.DistilModuleResponse(report=json.dumps(event.report))


def composing(event: Progress | Composed) -> Iterator[pb.ComposeModuleResponse]:
    """An event of a composition as messages."""
    if isinstance(event, Progress):
        yield pb.ComposeModuleResponse(progress=pb.ComposeProgress(done=event.done, total=event.total))
        return
    for file in _files(event.files):
        yield pb.ComposeModuleResponse(file=file)
    yield pb.ComposeModuleResponse(recipe=json.dumps(event.recipe))


def _files(files: Mapping[str, bytes]) -> Iterator[pb.ComposedFile]:
    for name, content in files.items():
        for start in range(0, len(content), FILE_CHUNK_BYTES):
            yield pb.ComposedFile(file_name=name, content=content[start : start + FILE_CHUNK_BYTES])


def _recipe(request: pb.DistilModuleRequest) -> Recipe:
    """Raises InvalidModule."""
    value = request.recipe
    recipe = Recipe(
        steps=value.steps,
        rows=value.rows,
        rank=value.rank,
        rate=value.rate,
        fact_share=value.fact_share,
        fresh=value.fresh,
        stop_loss=value.stop_loss,
        least_teacher=value.least_teacher,
        phrasings=value.phrasings,
        tokens=value.tokens,
        old_share=value.old_share,
    )
    try:
        check_recipe(recipe)
        check_budget(request.budget_s)
        check_texts(request.texts)
    except InvalidField as error:
        raise InvalidModule(error.field, error.rule) from None
    return recipe


def _check_old(request: pb.DistilModuleRequest) -> None:
    """Raises InvalidModule."""
    if not request.parent_digest:
        raise InvalidModule("old_texts", "are asked again where a parent is trained on; name it")
    try:
        check_texts(request.old_texts)
    except InvalidField as error:
        raise InvalidModule(error.field, error.rule) from None


def _progress(value: DistilProgress) -> pb.DistilProgress:
    return pb.DistilProgress(
        stage=value.stage,
        step=value.done,
        steps=value.total,
        cpu_s=value.cpu_s,
        tokens=value.tokens,
        median_loss=value.median_loss,
    )
