"""What the teacher of a fact has in its prompt."""

from __future__ import annotations

from memserve.worker.training.distil.reading import read_memories, sources_of

PAGE = "Handbook › People\n\nThe cook of the Tarn is Pavel Duric. The founder of the Tarn is Anton Weiss."
LONG = "The cook of the Oder is Bo. " + "It rains there. " * 60
SINGLE = "Note: the motto of the Tarn is Patience."


def test_of_a_page_it_is_the_sentence_and_of_a_single_fact_the_memory() -> None:
    memories, mute = read_memories((PAGE, SINGLE, "They left."))
    assert mute == [2]
    assert sources_of(memories) == [
        "The cook of the Tarn is Pavel Duric.",
        "The founder of the Tarn is Anton Weiss.",
        SINGLE,
    ]


def test_of_a_long_text_it_is_the_sentence_that_states_the_fact() -> None:
    memories, _ = read_memories((LONG,))
    assert sources_of(memories) == ["The cook of the Oder is Bo."]
