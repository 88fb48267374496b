# Generated from ../_async/client.py by `make client`; do not edit.
"""A client of a gateway."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from memserve.client._sync import _io
from memserve.client._sync.activation import ActivationCalls
from memserve.client._sync.connection import Connection
from memserve.client._sync.cubes import CubeCalls
from memserve.client._sync.lineage import LineageCalls
from memserve.client._sync.memories import MemoryCalls
from memserve.client._sync.modules import ModuleCalls
from memserve.client.endpoint import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_S, TlsFiles, endpoint_of
from memserve.client.errors import CallFailed
from memserve.client.values import Answer, Conversation, Event, Status, collect
from memserve.client.wire.inference import (
    event_of,
    explanation_of,
    generate_request,
    recall_message,
    recall_request,
)
from memserve.client.wire.kept import answer_explanation_of
from memserve.client.wire.recalled import preview_of, recorded_of
from memserve.client.wire.status import ladder_of, status_of
from memserve.domain import (
    AnswerExplanation,
    Expert,
    Explanation,
    ModuleUse,
    Priority,
    RecallPreview,
    RecordedOutcome,
    Sampling,
    Slo,
)
from memserve.domain.ladder import LadderReport
from memserve.pb.v1 import inference_pb2, status_pb2


class Client(MemoryCalls):
    """A client that blocks, for any number of threads.

    with Client("127.0.0.1:50051") as client:
        answer = client.generate("What is the code of Amber Lantern?", namespaces="notes")

    Every method raises CallFailed. It raises UsageError for an argument that cannot be sent: an address, a
    key, or a value of another type. A single string is accepted in the place of a list of strings.
    """

    activation: ActivationCalls
    """The KV of prompt prefixes."""
    modules: ModuleCalls
    """Modules, their versions and aliases."""
    cubes: CubeCalls
    """Namespaces and modules in one file."""
    lineage: LineageCalls
    """What was made of what, and erasures."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        api_key: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        *,
        tls: TlsFiles | None = None,
    ) -> None:
        """address: host:port of the gateway. timeout_s: the deadline of each call.
        tls: the files, where the gateway speaks TLS. None: without TLS; for an https:// address with gRPC's
        own list of authorities.
        """
        super().__init__(Connection(endpoint_of(address, api_key, timeout_s, tls)))
        self.activation = ActivationCalls(self._connection)
        self.modules = ModuleCalls(self._connection)
        self.cubes = CubeCalls(self._connection)
        self.lineage = LineageCalls(self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Safe to call twice. Calls under way are cancelled."""
        self._connection.close()

    def generate(
        self,
        messages: Conversation,
        *,
        module: str = "",
        expert: Expert | None = None,
        modules: str | ModuleUse | Sequence[str | ModuleUse] = (),
        namespaces: str | Sequence[str] = (),
        recall_limit: int = 0,
        recall_timeout_ms: int = 0,
        recall_options: Mapping[str, Any] | None = None,
        choose_module: bool = False,
        skip_pinned: bool = False,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        logprobs: bool | None = None,
        min_tokens: int | None = None,
        json_schema: str | None = None,
        sampling: Sampling | None = None,
        slo: Slo | None = None,
        model: str = "",
        worker_id: str = "",
        session: str = "",
        priority: Priority | str | None = None,
        do_not_queue: bool = False,
        keep_prompt: bool = False,
    ) -> Answer:
        """Ask, and wait for the whole answer.

        messages: a question, or a conversation.
        module: the LoRA to answer with: `name` (its alias live), `name@alias` or `name@number`.
        expert: the logit expert to decode with. modules: further modules of any kind, by reference.
        namespaces: where memories are recalled from. Without a namespace no memories are recalled.
        recall_limit, recall_timeout_ms: passages at most, and time for the search. 0: the gateway's default.
        recall_options: how to search, as the options of `find`: filter, context, min_relevance and others.
        choose_module: without a module, use the one that fits. skip_pinned: leave pinned passages out.
        max_tokens: output tokens at most. None: the gateway's default.
        temperature: None and 0 are greedy. seed: repeats the choices of a temperature over 0.
        top_p: tokens are chosen from this share of the probability. None: all of it.
        stop: the answer ends before any of these texts. logprobs: return each token's log-probability.
        min_tokens: the answer does not end by itself before this many tokens.
        json_schema: the answer is JSON of this JSON Schema.
        sampling: the eight arguments from max_tokens to json_schema in one value, instead of them.
        slo: times that the caller wishes for. The receipt says whether they were met.
        model: the served model's name, or empty. worker_id: send the request to this worker and no other.
        session: gets one version of an alias that is split. priority: high, normal or low.
        do_not_queue: refuse it where no engine can begin now. keep_prompt: keep it, for `explain_answer`.
        """
        events = self.stream(
            messages, module=module, expert=expert, modules=modules, namespaces=namespaces,
            recall_limit=recall_limit, recall_timeout_ms=recall_timeout_ms, recall_options=recall_options,
            choose_module=choose_module, skip_pinned=skip_pinned, max_tokens=max_tokens, top_p=top_p,
            temperature=temperature, seed=seed, stop=stop, logprobs=logprobs, min_tokens=min_tokens,
            json_schema=json_schema, sampling=sampling, slo=slo, model=model, worker_id=worker_id,
            session=session, priority=priority, do_not_queue=do_not_queue, keep_prompt=keep_prompt,
        )  # fmt: skip
        return collect([event for event in events])

    def stream(
        self,
        messages: Conversation,
        *,
        module: str = "",
        expert: Expert | None = None,
        modules: str | ModuleUse | Sequence[str | ModuleUse] = (),
        namespaces: str | Sequence[str] = (),
        recall_limit: int = 0,
        recall_timeout_ms: int = 0,
        recall_options: Mapping[str, Any] | None = None,
        choose_module: bool = False,
        skip_pinned: bool = False,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        logprobs: bool | None = None,
        min_tokens: int | None = None,
        json_schema: str | None = None,
        sampling: Sampling | None = None,
        slo: Slo | None = None,
        model: str = "",
        worker_id: str = "",
        session: str = "",
        priority: Priority | str | None = None,
        do_not_queue: bool = False,
        keep_prompt: bool = False,
    ) -> Generator[Event, None, None]:
        """Stream an answer: a Route, TextDeltas, and at the end a Usage. `generate` explains the arguments.

        Closing the generator cancels the call.
        """
        stub = self._connection.stubs.inference
        request = generate_request(
            messages, module=module, expert=expert, modules=modules, namespaces=namespaces,
            recall_limit=recall_limit, recall_timeout_ms=recall_timeout_ms, recall_options=recall_options,
            choose_module=choose_module, skip_pinned=skip_pinned, max_tokens=max_tokens, top_p=top_p,
            temperature=temperature, seed=seed, stop=stop, logprobs=logprobs, min_tokens=min_tokens,
            json_schema=json_schema, sampling=sampling, slo=slo, model=model, worker_id=worker_id,
            session=session, priority=priority, do_not_queue=do_not_queue, keep_prompt=keep_prompt,
        )  # fmt: skip
        with contextlib.closing(self._connection.stream(stub.Generate, request)) as responses:
            for response in responses:
                if (event := event_of(response)) is not None:
                    yield event

    def recall(
        self,
        messages: Conversation,
        *,
        namespaces: str | Sequence[str],
        limit: int = 0,
        timeout_ms: int = 0,
        options: Mapping[str, Any] | None = None,
        choose_module: bool = False,
        skip_pinned: bool = False,
        model: str = "",
        module: str = "",
        modules: str | ModuleUse | Sequence[str | ModuleUse] = (),
    ) -> RecallPreview:
        """What `generate` would recall for these messages, from all three memories. `generate` explains the
        arguments.
        """
        stub = self._connection.stubs.inference
        wishes = recall_message(namespaces, limit, timeout_ms, options or {}, choose_module, skip_pinned)
        request = recall_request(messages, wishes, model, module, modules)
        return preview_of(self._connection.call(stub.Recall, request))

    def record_outcome(
        self,
        request_id: str,
        reward: float,
        *,
        note: str = "",
        reflect: bool = False,
        namespace: str = "",
        task: str = "",
    ) -> RecordedOutcome:
        """Say how an answer turned out. The memories that it was made with count more or less from then on.

        request_id: of the receipt, `answer.route.request_id`.
        reward: -1 is a failure, 1 is a success.
        note: what there is to say about it. With `reflect` it is what was learned: it is stored as a
        reflection, in `namespace`, and recalled first when the same task comes again.
        namespace: empty for the first one that the request recalled from.
        task: as it will be asked again. Empty: the question, where the prompt was kept.
        """
        stub = self._connection.stubs.inference
        request = inference_pb2.RecordOutcomeRequest(
            request_id=request_id, reward=reward, note=note, reflect=reflect, namespace=namespace, task=task
        )
        return recorded_of(self._connection.call(stub.RecordOutcome, request))

    def explain(self, request_id: str) -> Explanation:
        """Why a request of this gateway's last 2,048 went where it went, and what became of it.

        request_id: of the receipt, `answer.route.request_id`.
        """
        stub = self._connection.stubs.inference
        request = inference_pb2.ExplainRequest(request_id=request_id)
        return explanation_of(self._connection.call(stub.Explain, request))

    def explain_answer(self, request_id: str, *, leave_one_out: bool = False) -> AnswerExplanation:
        """What an answer used: passages, modules, cached share, and why it went where it went.

        request_id: of the receipt, `answer.route.request_id`.
        leave_one_out: measure how much each passage mattered, by scoring the answer without it. It needs
        `keep_prompt`, and takes as long as reading the prompts anew.
        """
        stub = self._connection.stubs.inference
        request = inference_pb2.ExplainAnswerRequest(request_id=request_id, leave_one_out=leave_one_out)
        return answer_explanation_of(self._connection.call(stub.ExplainAnswer, request))

    def status(self, *, workers_only: bool = False) -> Status:
        """What runs now.

        workers_only: leave out memories and modules, so that the cost of the call does not depend on them.
        """
        stub = self._connection.stubs.status
        request = status_pb2.GetStatusRequest(workers_only=workers_only)
        return status_of(self._connection.call(stub.GetStatus, request))

    def ladder(self) -> LadderReport:
        """What was last decided about the tenant's namespaces on the ladder of knowledge, and why."""
        stub = self._connection.stubs.status
        return ladder_of(self._connection.call(stub.GetLadder, status_pb2.GetLadderRequest()))

    def backup(self, name: str) -> Generator[str, None, None]:
        """Back up the server's data directory. Yields a line for a person at every step.

        The backup is complete when the generator ends.
        """
        stub = self._connection.stubs.status
        request = status_pb2.BackupRequest(name=name)
        with contextlib.closing(self._connection.stream(stub.Backup, request)) as responses:
            for response in responses:
                yield response.line


def wait_until_ready(
    address: str,
    timeout_s: float,
    workers: int = 1,
    api_key: str = "",
    *,
    only: Collection[str] = frozenset(),
    tls: TlsFiles | None = None,
) -> bool:
    """Wait until the gateway at `address` can send requests to this number of workers.

    only: ids of workers. Wait until the gateway has these workers and no others. A worker that has just ended
    counts as another worker. Empty: any workers.
    Returns False when the time is over.
    """
    deadline_s = time.monotonic() + timeout_s
    with Client(address, api_key, timeout_s=2.0, tls=tls) as client:
        while True:
            with contextlib.suppress(CallFailed):
                seen = client.status(workers_only=True).workers
                if sum(worker.ready for worker in seen) >= workers and (
                    not only or {worker.worker_id for worker in seen} == set(only)
                ):
                    return True
            if time.monotonic() >= deadline_s:
                return False
            _io.sleep(0.1)
