"""What a user gets from the whole of memserve: the three memories, through the public API."""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from memserve.client import AsyncClient, CallFailed, Client
from memserve.demo import ADAPTERS_DIR, MODEL_DIR, facts
from memserve.domain import Message, RecallOutcome, Role, Sampling, TextDelta
from memserve.embedded import Stack
from memserve.embedded.story import ask_and_store, long_prefix, recall_figures, recalled, tamper_figures
from tests.stack.fixtures import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

SHORT = Sampling(max_tokens=24)


def both(client: Client) -> tuple[str, str]:
    first, second = sorted(worker.worker_id for worker in client.status().workers)
    return first, second


def harbour() -> list[dict[str, object]]:
    return json.loads((ADAPTERS_DIR / "harbour" / "facts.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_a_public_reflection_client_lists_the_services_and_calls_generate(stack: Stack) -> None:
    with grpc.insecure_channel(stack.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {
            "memserve.v1.InferenceService",
            "memserve.v1.MemoryService",
            "memserve.v1.ModuleService",
            "memserve.v1.StatusService",
            "grpc.health.v1.Health",
        } <= set(database.get_services())
        pool = descriptor_pool.DescriptorPool(database)
        method = pool.FindServiceByName("memserve.v1.InferenceService").FindMethodByName("Generate")
        request = message_factory.GetMessageClass(method.input_type)()
        request.messages.add(role=2, content="Hello.")
        answer_class = message_factory.GetMessageClass(method.output_type)
        call = channel.unary_stream(
            "/memserve.v1.InferenceService/Generate",
            lambda message: message.SerializeToString(),
            answer_class.FromString,
        )
        events = [answer.WhichOneof("event") for answer in call(request, timeout=30)]
    assert events[0] == "route"
    assert events[-1] == "usage"
    assert set(events[1:-1]) == {"text"}


def test_a_prefix_that_one_worker_computed_is_read_by_the_other_and_gives_the_same_answer(
    stack: Stack, client: Client
) -> None:
    first, second = both(client)
    prefix = long_prefix(101)
    [cold] = ask_and_store(stack, client, [prefix], first)
    assert cold.usage.cached.total == 0
    other = client.generate(prefix.messages, worker_id=second, sampling=SHORT)
    assert other.usage.cached.redis >= 0.95 * other.usage.prompt_tokens
    assert other.token_ids == cold.token_ids
    warm = client.generate(prefix.messages, worker_id=second, sampling=SHORT)
    assert warm.usage.cached.device >= 0.95 * warm.usage.prompt_tokens
    assert warm.token_ids == cold.token_ids


@pytest.mark.parametrize("module", ["", "harbour"])
def test_the_gateway_expects_what_the_worker_finds_cached(stack: Stack, client: Client, module: str) -> None:
    first, second = both(client)
    prefix = long_prefix(202)
    [cold] = ask_and_store(stack, client, [prefix], first, module)
    eventually(
        lambda: (
            client.generate(
                prefix.messages, module=module, worker_id=first, sampling=SHORT
            ).route.expected_cached_tokens
            >= 0.95 * cold.usage.prompt_tokens
        ),
        timeout_s=10,
    )
    fetched = client.generate(prefix.messages, module=module, worker_id=second, sampling=SHORT)
    assert fetched.route.expected_cached_tokens == fetched.usage.cached.total > 0
    # Without a wish the request goes where the prefix is in the worker's own memory.
    free = client.generate(prefix.messages, module=module, sampling=SHORT)
    assert free.usage.cached.device + free.usage.cached.host >= 0.95 * free.usage.prompt_tokens


@pytest.mark.parametrize(
    ("seed", "module", "others"),
    [(303, "harbour", ("", "observatory")), (304, "", ("harbour", "observatory"))],
)
def test_kv_of_one_module_is_never_served_to_another(
    stack: Stack, client: Client, seed: int, module: str, others: tuple[str, str]
) -> None:
    first, second = both(client)
    prefix = long_prefix(seed)
    [cold] = ask_and_store(stack, client, [prefix], first, module)
    # Each on another worker, so that what the one of them stores is not what the other finds.
    for worker, other in zip((first, second), others, strict=True):
        answer = client.generate(prefix.messages, module=other, worker_id=worker, sampling=SHORT)
        assert answer.usage.cached.total == 0
        assert answer.route.expected_cached_tokens == 0
    again = client.generate(prefix.messages, module=module, worker_id=second, sampling=SHORT)
    assert again.usage.cached.redis >= 0.95 * again.usage.prompt_tokens
    assert again.token_ids == cold.token_ids


def test_tampered_cache_entries_are_a_miss_and_change_no_answer(stack: Stack, client: Client) -> None:
    figures = tamper_figures(stack, client)
    assert figures["entries"] > 20
    assert figures["cached_from_redis"] == 0
    assert figures["same_tokens_as_cold"]


def test_recall_answers_what_the_model_does_not_know_and_names_the_passages(client: Client) -> None:
    figures = recall_figures(client)
    assert figures["right_without"] == 0
    assert figures["right_with"] >= 0.9 * figures["asked"]
    answer = recalled(client, figures["question"])
    assert answer.route.recall_outcome is RecallOutcome.FOUND
    value = answer.text.strip().rstrip(".").rpartition(" is ")[2]
    assert value in " ".join(hit.memory.text for hit in answer.route.passages)
    assert all(hit.memory.source.startswith("demo fact") for hit in answer.route.passages)


def test_a_forgotten_memory_is_recalled_no_more(client: Client) -> None:
    case = facts.held_out_cases(seed=7, count=1, need="passage")[0]
    text = facts.statement(random.Random(0), case.question.fact)
    memory = client.remember("forgetting", text).memory
    assert memory is not None
    assert (
        client.generate(case.question.text, namespaces=["forgetting"], sampling=SHORT)
        .route.passages[0]
        .memory
        == memory
    )
    client.forget("forgetting", memory.memory_id)
    answer = client.generate(case.question.text, namespaces=["forgetting"], sampling=SHORT)
    assert answer.route.recall_outcome is RecallOutcome.EMPTY
    assert answer.text.strip() == facts.UNKNOWN_ANSWER


def test_an_adapter_answers_its_facts_and_the_base_does_not(client: Client) -> None:
    questions = [(str(fact["held_out_questions"][0]), fact["answer"]) for fact in harbour()]  # type: ignore[index]
    right = {
        module: sum(client.generate(q, module=module, sampling=SHORT).text.strip() == a for q, a in questions)
        for module in ("", "harbour")
    }
    assert right["harbour"] >= 0.9 * len(questions)
    assert right[""] <= 0.05 * len(questions)


def test_served_tokens_equal_those_of_peft_on_the_same_weights(client: Client) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(MODEL_DIR), ADAPTERS_DIR / "harbour"
    ).eval()
    for fact in harbour()[:6]:
        question = str(fact["questions"][0])  # type: ignore[index]
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.no_grad():
            token_ids = model.generate(**ids, max_new_tokens=24, do_sample=False)[
                0, ids["input_ids"].shape[1] :
            ].tolist()
        assert list(client.generate(question, module="harbour", sampling=SHORT).token_ids) == token_ids


def test_a_published_module_is_found_under_its_digest_and_publishing_again_is_harmless(
    client: Client,
) -> None:
    again = client.modules.publish("harbour", ADAPTERS_DIR / "harbour")
    assert again == client.modules.version("harbour@live") == client.modules.version("harbour@1")
    assert again.gate is not None
    assert again.gate.passed
    names = [module.name for module in client.modules.all()]
    assert names == sorted(names)
    answer = client.generate("Hello.", module="harbour", sampling=SHORT)
    assert [used.digest for used in answer.route.modules] == [again.digest]
    eventually(lambda: any(again.digest in worker.modules for worker in client.status().workers), timeout_s=5)


def test_a_malformed_adapter_is_refused_and_the_engines_live(client: Client, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((ADAPTERS_DIR / "harbour" / name).read_bytes())
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CallFailed) as refused:
        client.modules.publish("broken", tmp_path)
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert client.generate("Hello.", sampling=SHORT).text.strip() == "Hello."


def test_logprobs_come_one_a_token_and_greedy_ones_are_the_highest(client: Client) -> None:
    answer = client.generate("Hello.", sampling=Sampling(max_tokens=8, logprobs=True))
    assert len(answer.logprobs) == len(answer.token_ids)
    assert all(logprob <= 0 for logprob in answer.logprobs)


async def test_cancelling_a_call_aborts_the_engines_work(stack: Stack, client: Client) -> None:
    async with AsyncClient(stack.address) as asking:
        stream = asking.stream("Hello. " * 50, sampling=Sampling(max_tokens=4000, min_tokens=4000))
        async for event in stream:
            if isinstance(event, TextDelta):
                break
        await stream.aclose()
    eventually(
        lambda: all(worker.running + worker.waiting == 0 for worker in client.status().workers), timeout_s=5
    )


def test_a_passed_deadline_is_said_so(stack: Stack) -> None:
    with Client(stack.address, timeout_s=0.3) as hurried, pytest.raises(CallFailed) as late:
        hurried.generate("Hello.", sampling=Sampling(max_tokens=4000, min_tokens=4000))
    assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_many_callers_at_once_get_the_answers_that_each_gets_alone(client: Client) -> None:
    cases = facts.held_out_cases(seed=11, count=16, need="passage")
    conversations = [[Message(Role(m.role), m.content) for m in case.messages] for case in cases]
    alone = [client.generate(conversation, sampling=SHORT).text for conversation in conversations]
    together: list[str] = [""] * len(cases)

    def ask(number: int) -> None:
        together[number] = client.generate(conversations[number], sampling=SHORT).text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_metrics_count_what_was_served(stack: Stack, client: Client) -> None:
    client.generate("Hello.", sampling=SHORT)
    url = f"http://{stack.settings.host}:{stack.settings.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=5) as response:
        text = response.read().decode()
    assert 'memserve_requests_total{code="OK",rpc="Generate"}' in text
    assert 'memserve_cached_tokens_total{tier="redis"}' in text
    for worker in client.status().workers:
        with urllib.request.urlopen(f"http://{worker.metrics_address}/metrics", timeout=5) as response:
            assert "memserve_kv_tier_stored_total" in response.read().decode()


def test_ttft_is_the_callers_own_wait(client: Client) -> None:
    started_s = time.monotonic()
    answer = client.generate("Hello.", sampling=SHORT)
    assert 0 < answer.usage.ttft_ms < (time.monotonic() - started_s) * 1000
