"""What a reflection says: the task, so that it is found when the task comes again, and the lesson. Pure."""

from __future__ import annotations


def reflection_text(task: str, note: str) -> str:
    """The memory's text. The note is kept as it came (Shinn et al. 2023: reflections are not compressed)."""
    return f"When asked: {' '.join(task.split())}\nLesson: {note.strip()}" if task.strip() else note.strip()
