"""What a reflection says: the task, so that it is found when the task comes again, and the lesson. Pure."""

from __future__ import annotations

from memserve.policy.recall.ranking import query_words

_TASK = "When asked: "
_LESSON = "\nLesson: "


def reflection_text(task: str, note: str) -> str:
    """The memory's text. The note is kept as it came (Shinn et al. 2023: reflections are not compressed)."""
    return f"{_TASK}{' '.join(task.split())}{_LESSON}{note.strip()}" if task.strip() else note.strip()


def task_likeness(text: str, question: str) -> float:
    """How much a reflection's task is worded like a question, 0 to 1: the share of the words that both have.

    text: of the reflection. One without a task is compared as a whole.
    """
    task = text.removeprefix(_TASK).partition(_LESSON)[0]
    words, asked = set(query_words(task)), set(query_words(question))
    return len(words & asked) / max(1, len(words), len(asked))
