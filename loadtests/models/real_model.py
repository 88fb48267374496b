"""A real language model, as a user would serve it: SmolLM2-135M-Instruct by `memserve up --model`.

`memserve models fetch smollm2` fetches and converts it into the data directory. It chats, answers from
recalled memories, and is asked the same long prefix cold, warm, and with its KV from Redis after everything
was stopped and started again.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.real_models import smollm2
from loadtests.harness.up import Up
from memserve.client import Answer, Client
from memserve.domain import Message, Role, Sampling

PREFIX_TOKENS, QUICK_PREFIX_TOKENS = 4000, 1000
# A prefix's last partial chunk is computed again.
CHUNK_TOKENS_MOST = 128
WARM_RATIO_MOST, REDIS_RATIO_MOST = 0.2, 0.2
ANSWER = Sampling(max_tokens=24)
FACTS = {
    "The code of the north gate is 4071.": ("What is the code of the north gate?", "4071"),
    "Mara's dog is called Pepper.": ("What is the name of Mara's dog?", "Pepper"),
    "The spare key is kept in the blue drawer.": ("Where is the spare key kept?", "blue drawer"),
}
CHAT = {"What is the capital of France?": "Paris", "How many days are in a week?": "7|seven"}
# About 16.5 tokens each.
LINE = "Entry {number}: the lighthouse keeper noted the wind and the tide."


def prefix_of(tokens: int) -> str:
    return "\n".join(LINE.format(number=number) for number in range(tokens // 16))


def says(answer: Answer, wanted: str) -> bool:
    return any(word.lower() in answer.text.lower() for word in wanted.split("|"))


def ask_prefix(client: Client, prefix: str, question: str) -> Answer:
    return client.generate(
        [Message(Role.SYSTEM, prefix), Message(Role.USER, question)], sampling=Sampling(max_tokens=8)
    )


@contextlib.contextmanager
def serving(data: Path) -> Iterator[Client]:
    """While a `memserve up` of the model runs on this directory."""
    up = Up(data, "smollm2", workers=1)
    try:
        up.wait_until_ready()
        with Client(up.address, timeout_s=120) as client:
            yield client
    finally:
        up.stop()


@dataclass(frozen=True, slots=True)
class Answers:
    chats: dict[str, Answer]
    recalls: dict[str, Answer]
    """By question, with memories in the prompt."""
    cold: Answer
    warm: Answer
    again: Answer
    """The long prefix as in `cold` and `warm`, after everything was stopped and started again."""


def ask_everything(data: Path, prefix: str) -> Answers:
    with serving(data) as client:
        chats = {question: client.generate(question, sampling=ANSWER) for question in CHAT}
        for text in FACTS:
            client.remember("notes", text)
        recalls = {
            question: client.generate(question, namespaces=["notes"], sampling=ANSWER)
            for question, _ in FACTS.values()
        }
        cold, warm = (ask_prefix(client, prefix, "What did the keeper note?") for _ in range(2))
    with serving(data) as client:
        again = ask_prefix(client, prefix, "What did the keeper note?")
    return Answers(chats, recalls, cold, warm, again)


def bars_of(answers: Answers) -> list[Bar]:
    cold, warm, again = answers.cold, answers.warm, answers.again
    missing = again.usage.prompt_tokens - again.usage.cached.redis
    return [
        Bar(
            "questions answered as known",
            sum(says(answers.chats[question], wanted) for question, wanted in CHAT.items()),
            at_least=len(CHAT),
        ),
        Bar(
            "questions answered from memories",
            sum(says(answers.recalls[question], wanted) for question, wanted in FACTS.values()),
            at_least=len(FACTS),
        ),
        Bar("TTFT warm ÷ cold", warm.usage.ttft_ms / cold.usage.ttft_ms, at_most=WARM_RATIO_MOST),
        Bar(
            "TTFT from Redis after a restart ÷ cold",
            again.usage.ttft_ms / cold.usage.ttft_ms,
            at_most=REDIS_RATIO_MOST,
        ),
        Bar("tokens of the prompt that did not come from Redis", missing, at_most=CHUNK_TOKENS_MOST),
        Bar(
            "answers that differ after the restart from the warm one", int(again.text != warm.text), at_most=0
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("real_model", __doc__).parse_args(arguments)
    prefix = prefix_of(QUICK_PREFIX_TOKENS if chosen.quick else PREFIX_TOKENS)
    folder = Path(tempfile.mkdtemp(prefix="memserve-real-"))
    try:
        report("the model")
        began_s = time.monotonic()
        smollm2(folder / "data")
        conversion_s = time.monotonic() - began_s
        answers = ask_everything(folder / "data", prefix)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [(question, answer.text.strip()) for question, answer in (answers.chats | answers.recalls).items()]
    prefixes = {"cold": answers.cold, "warm": answers.warm, "after a restart": answers.again}
    for name, answer in prefixes.items():
        used = answer.usage
        rows.append(
            (
                f"a prompt of {used.prompt_tokens} tokens, {name}",
                f"first token after {used.ttft_ms:.0f} ms, cached {used.cached}",
            )
        )
    print_table(("asked", "answered"), rows)
    ttft_ms = [answer.usage.ttft_ms for answer in prefixes.values()]
    names = ("conversion_s", "cold_ms", "warm_ms", "redis_ms")
    figures: dict[str, object] = dict(zip(names, (conversion_s, *ttft_ms), strict=True))
    return finish(bars_of(answers), figures, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
