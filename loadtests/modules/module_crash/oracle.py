"""What was acknowledged of every module, and whether the store says the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from loadtests.harness.figures import report
from loadtests.harness.stack import variant
from loadtests.modules.module_crash.killer import Figures
from loadtests.modules.module_crash.states import MODULES, Operation, Seen, State, after, contradictions
from memserve.client import CallFailed
from memserve.config import Settings
from memserve.demo import ADAPTERS_DIR, MODEL_DIR
from memserve.errors import MemserveError
from memserve.memory.modules.blobs.store import BlobStore
from memserve.memory.modules.kinds.files import BaseModel
from memserve.memory.modules.kinds.lora import check_lora
from memserve.model.files import open_model

PROBES = 6


class Oracle:
    """The state that every module is in. What contradicts it goes to the figures."""

    def __init__(self, settings: Settings, folder: Path, figures: Figures) -> None:
        """folder: for the files that are published."""
        self.states: dict[str, State] = dict.fromkeys(MODULES, State())
        self.seen = Seen(dict.fromkeys(MODULES, ()), dict.fromkeys(MODULES, ()), {}, ())
        self._folder = folder
        self._figures = figures
        self._blobs = BlobStore("", settings.modules_root / "modules")
        model = open_model(MODEL_DIR)
        self._base = BaseModel(model.tensor_shapes(), int(model.config["vocab_size"]), settings.max_lora_rank)
        self._digests: dict[int, str] = {}

    def files(self, content: int) -> Path:
        """A module that differs from the harbour adapter in the fourth decimal, with a few of its questions
        as probes.
        """
        folder = self._folder / str(content)
        if not folder.exists():
            variant("harbour", folder, scale=1 + content / 10_000)
            held = json.loads((ADAPTERS_DIR / "harbour" / "facts.json").read_text(encoding="utf-8"))[:PROBES]
            probes = [{"question": fact["questions"][0], "answers": [fact["answer"]]} for fact in held]
            document = {
                "sets": [{"name": f"recall-{content}", "kind": "recall", "target": 0.5, "probes": probes}]
            }
            (folder / "probes.json").write_text(json.dumps(document), encoding="utf-8")
            self._digests[content] = check_lora(folder, self._base).digest
        return folder

    def digest(self, content: int) -> str:
        """Of the module that `files` has written."""
        return self._digests[content]

    def target(self, operation: Operation) -> State:
        """The state of the module with the operation done."""
        digest = self._digests.get(operation.content, "")
        return after(self.states[operation.module], operation, digest)

    def judge(self, operation: Operation, target: State, state: State, failure: CallFailed | None) -> None:
        """An operation that was acknowledged is done. An operation that was cut off is done or not begun."""
        if failure is None and state != target:
            self._figures.lost.append(f"{operation}: acknowledged, and the store has {state}")
        elif failure is not None and state not in (target, self.states[operation.module]):
            self._figures.inconsistent.append(f"{operation}: cut off, and the store has {state}")

    def check(self, seen: Seen, states: Mapping[str, State]) -> None:
        """Hold everything that can be seen against itself and against the states that it must have."""
        wrong = contradictions(seen, self.seen)
        for module, state in states.items():
            if seen.state(module) != state:
                wrong.append(f"{module}: the store has {seen.state(module)}, and {state} was acknowledged")
        for digest in sorted({digest for state in states.values() for digest in state.versions.values()}):
            try:
                if check_lora(self._blobs.local(digest), self._base).digest != digest:
                    wrong.append(f"the files of {digest} have another digest")
            except MemserveError as error:
                wrong.append(f"the files of {digest}: {error}")
        self.note(wrong)
        self.seen, self.states = seen, {module: seen.state(module) for module in MODULES}

    def note(self, wrong: list[str]) -> None:
        self._figures.inconsistent += wrong
        for line in wrong:
            report(f"  WRONG: {line}")
