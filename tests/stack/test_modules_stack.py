"""Modules on real workers: versions change answers and give them back, experts join in, places are told as
they are.
"""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import numpy as np
import pytest

from memserve.client import Answer, CallFailed, Client
from memserve.demo import ADAPTERS_DIR, EXPERTS_DIR, MODEL_DIR
from memserve.domain import Expert, ModuleKind, ModulePlace, Sampling
from memserve.memory.modules.kinds.soft_prompt import soft_prompt_files
from memserve.model.files import open_model
from tests.stack.fixtures import eventually
from tests.stack.modules import LOADED, adapter_files, places

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

SHORT = Sampling(max_tokens=24)


def held_facts(folder: Path) -> list[tuple[str, str]]:
    """Questions in phrasings that the module was not trained on, and the answers."""
    return [
        (fact["held_out_questions"][0], fact["answer"])
        for fact in json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    ]


def test_a_promotion_changes_the_answers_and_a_rollback_gives_them_back_token_for_token(
    client: Client, tmp_path: Path
) -> None:
    first = client.modules.publish("changing", adapter_files("harbour", tmp_path / "first", 0.99))
    second = client.modules.publish("changing", adapter_files("observatory", tmp_path / "second", 0.99))
    question, answer = held_facts(ADAPTERS_DIR / "harbour")[0]
    client.modules.promote("changing", first.version)
    before = client.generate(question, module="changing", sampling=SHORT)
    assert before.text.strip() == answer
    client.modules.promote("changing", second.version)
    for worker in client.status().workers:
        promoted = client.generate(question, module="changing", worker_id=worker.worker_id, sampling=SHORT)
        assert [used.digest for used in promoted.route.modules] == [second.digest]
        assert promoted.token_ids != before.token_ids
    client.modules.rollback("changing")
    for worker in client.status().workers:
        restored = client.generate(question, module="changing", worker_id=worker.worker_id, sampling=SHORT)
        assert [used.digest for used in restored.route.modules] == [first.digest]
        assert restored.token_ids == before.token_ids
    assert [change.action for change in client.modules.history("changing")] == [
        "promote",
        "promote",
        "rollback",
    ]


def test_a_soft_prompt_is_served_and_its_kv_is_found_where_the_gateway_expects_it(
    client: Client, tmp_path: Path
) -> None:
    model = open_model(MODEL_DIR)
    rows = np.random.default_rng(7).normal(scale=0.3, size=(70, model.hidden_size)).astype(np.float32)
    folder = tmp_path / "soft"
    folder.mkdir()
    for name, content in soft_prompt_files(rows, model.model_digest()).items():
        (folder / name).write_bytes(content)
    version = client.modules.publish("soft", folder)
    assert (version.kind, version.moves_logits) == (ModuleKind.SOFT_PROMPT, True)
    client.modules.promote("soft", version.version)
    question = "Where does the ferry leave in winter? " * 30
    first, second = (worker.worker_id for worker in client.status().workers)

    def ask(worker: str, module: str = "soft") -> Answer:
        return client.generate(question, modules=module, worker_id=worker, sampling=SHORT)

    cold = ask(first)
    assert cold.usage.cached.total == 0
    eventually(lambda: ask(first).route.expected_cached_tokens > version.prefix_tokens, timeout_s=20)
    warm = ask(first)
    assert warm.route.expected_cached_tokens == warm.usage.cached.total
    assert warm.token_ids == cold.token_ids
    # From Redis, where the other worker finds it under the same keys.
    eventually(lambda: ask(second).usage.cached.total > version.prefix_tokens, timeout_s=20)
    assert ask(second).token_ids == cold.token_ids
    assert client.generate(question, worker_id=first, sampling=SHORT).usage.cached.total == 0


def test_an_expert_answers_its_facts_beside_an_adapter_too_and_the_base_does_not(client: Client) -> None:
    asked = held_facts(EXPERTS_DIR / "archive")
    answers = [client.generate(question, expert=Expert("archive"), sampling=SHORT) for question, _ in asked]
    right = sum(
        given_answer.text.strip() == answer for given_answer, (_, answer) in zip(answers, asked, strict=True)
    )
    assert right >= 0.8 * len(asked)
    assert not any(
        client.generate(question, sampling=SHORT).text.strip() == answer for question, answer in asked
    )
    used = answers[0].route.modules[0]
    assert (used.name, used.kind, used.alpha) == ("archive", ModuleKind.LOGIT_EXPERT, 1.0)
    question, answer = asked[0]
    together = client.generate(question, module="harbour", expert=Expert("archive"), sampling=SHORT)
    assert [module.name for module in together.route.modules] == ["harbour", "archive"]
    assert together.text.strip() == answer


def test_an_expert_with_alpha_0_is_the_base_token_for_token(client: Client) -> None:
    for question, _ in held_facts(EXPERTS_DIR / "archive")[:4]:
        off = client.generate(question, expert=Expert("archive", alpha=0.0), sampling=SHORT)
        assert off.token_ids == client.generate(question, sampling=SHORT).token_ids


def test_a_version_that_was_made_from_another_faces_its_probes(client: Client) -> None:
    parent = client.modules.version("harbour")
    composed = client.modules.compose("thin-harbour", "compress", {"harbour": 1.0}, rank=1)
    assert (composed.rank, composed.parents) == (1, (parent.digest,))
    with pytest.raises(CallFailed) as refused:
        client.modules.promote("thin-harbour", composed.version)
    assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "recall" in refused.value.detail
    report = client.modules.version(composed.reference).gate
    assert report is not None
    assert not report.passed
    assert client.modules.get("thin-harbour").aliases == ()


def test_the_status_tells_where_a_version_is_as_it_is_loaded_and_unloaded(
    client: Client, tmp_path: Path
) -> None:
    version = client.modules.publish("placed", adapter_files("harbour", tmp_path / "placed", 1.01))
    first, second = sorted(worker.worker_id for worker in client.status().workers)
    client.modules.unload(version.reference)
    eventually(lambda: places(client, version) == {}, timeout_s=5)
    [loaded] = client.modules.preload(version.reference, worker_id=first)
    assert (loaded.worker_id, loaded.refusal) == (first, "")
    assert loaded.place in LOADED
    eventually(lambda: places(client, version) == {first: loaded.place}, timeout_s=5)
    client.generate("Hello.", module=version.reference, worker_id=second, sampling=SHORT)
    eventually(lambda: places(client, version).get(second) is ModulePlace.DEVICE, timeout_s=5)
    [unloaded] = client.modules.unload(version.reference, worker_id=first)
    assert (unloaded.worker_id, unloaded.place) == (first, ModulePlace.DISK)
    eventually(lambda: set(places(client, version)) == {second}, timeout_s=5)
