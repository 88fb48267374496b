"""What a sentence states is found by the forms of plain English statements."""

from __future__ import annotations

import random

import pytest

from memserve.demo import facts
from memserve.policy.modules.self_study.readings import Form, read_sentence, readings_of

STATED = {
    "The founder of the Velmora Institute is Ida Kern.": ("the Velmora Institute", "founder", "Ida Kern"),
    "Ida Kern is the founder of Velmora.": ("Velmora", "founder", "Ida Kern"),
    "Velmora's motto is Light Before Noon.": ("Velmora", "motto", "Light Before Noon"),
    "Records say that the phone of Lonely Hollow is 1942.": ("Lonely Hollow", "phone", "1942"),
    "Note: the dog of the Selby hotel is called Otis.": ("the Selby hotel", "dog", "Otis"),
    "For Amber Lantern, the keeper is Nora Brandt.": ("Amber Lantern", "keeper", "Nora Brandt"),
    "Amber Lantern: keeper Nora Brandt.": ("Amber Lantern", "keeper", "Nora Brandt"),
    "Amber Lantern has the code 4821.": ("Amber Lantern", "code", "4821"),
    "The Halden bakery is led by Ines Okafor.": ("the Halden bakery", "is led by", "Ines Okafor"),
    "The Velmora Institute was founded in 1931.": ("the Velmora Institute", "was founded in", "1931"),
    "The library closes on Monday.": ("the library", "closes on", "Monday"),
}


@pytest.mark.parametrize("sentence", STATED)
def test_a_statement_is_read_as_subject_attribute_and_value(sentence: str) -> None:
    reading = read_sentence(sentence)
    assert reading is not None
    assert (reading.subject, reading.attribute, reading.value) == STATED[sentence]


@pytest.mark.parametrize(
    "sentence",
    [
        "It opened in 1931.",
        "Where is the mill?",
        "The mill is not open on Monday.",
        "Hello.",
        "",
        "They left.",
    ],
)
def test_what_cannot_be_asked_for_alone_gives_no_reading(sentence: str) -> None:
    assert read_sentence(sentence) is None


def test_another_statement_of_one_sentence_is_asked_for_by_its_end() -> None:
    [reading] = readings_of("Tarn hotel keeps a dog called Otis.")
    assert (reading.form, reading.attribute, reading.value) == (
        Form.CLOZE,
        "Tarn hotel keeps a dog called",
        "Otis",
    )
    assert readings_of("Tarn hotel keeps a dog called Otis. Nobody minds the noise at night.") == []


PAGE = (
    "The director of the Tarn is Mira Solberg.",
    "The founder of the Tarn is Anton Weiss.",
    "Pavel Duric is the cook of the Tarn.",
)


@pytest.mark.parametrize(
    "page",
    [
        " ".join(PAGE),
        "\n".join(PAGE),
        "\n".join(PAGE).replace(".", ""),
        "\n\n".join(PAGE).replace(".", ""),
        "\n".join(f"- {line}" for line in PAGE).replace(".", ""),
        "\n".join(f"{place}. {line}" for place, line in enumerate(PAGE)),
        "Handbook › Of people in the Tarn\n\n" + " ".join(PAGE),
        "Handbook of the Tarn\n\nPeople\n\n" + " ".join(PAGE).replace("Tarn is", "Tarn\nis"),
    ],
    ids=["prose", "lines", "no marks", "paragraphs", "list", "numbers", "headings", "wrapped"],
)
def test_the_sentences_of_a_page_are_read_one_by_one(page: str) -> None:
    assert [(reading.attribute, reading.value) for reading in readings_of(page)] == [
        ("director", "Mira Solberg"),
        ("founder", "Anton Weiss"),
        ("cook", "Pavel Duric"),
    ]


def test_two_values_of_one_subject_have_one_key() -> None:
    first, other = (read_sentence(f"The code of the Mill is {code}.") for code in ("4821", "1188"))
    third = read_sentence("The mill: the code is 1188.")
    assert first is not None and other is not None and third is not None
    assert first.key == other.key == third.key


def test_every_passage_of_the_demo_world_is_read() -> None:
    rng = random.Random(5)
    for _ in range(300):
        fact = facts.fact(rng, "train", wild_share=0.0)
        passage = facts.passage(rng, fact)
        stated = {(reading.attribute, reading.value) for reading in readings_of(passage)}
        assert (fact.attribute, fact.value) in stated, passage
