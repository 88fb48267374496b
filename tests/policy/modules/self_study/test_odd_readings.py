"""Memories in odd forms: what they state is read as it stands, or not at all."""

from __future__ import annotations

import random

import pytest

from memserve.memory.modules.probes import Probes, parse_probes
from memserve.policy.modules.self_study import wording
from memserve.policy.modules.self_study.asking import probe_sets
from memserve.policy.modules.self_study.draw import Draw
from memserve.policy.modules.self_study.inventing import other_value
from memserve.policy.modules.self_study.readings import Form, all_readings_of, read_sentence, sentences
from memserve.policy.modules.self_study.study import Mix, Study


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("The founder of Velmora is Dr. Ida Kern.", ["Dr. Ida Kern"]),
        ("Dr. Ida Kern is the founder of Velmora.", ["Dr. Ida Kern"]),
        ("The author of The Ring is J. R. R. Tolkien.", ["J. R. R. Tolkien"]),
        ("The mill was built by J. Smith. The code of the mill is 4711.", ["J. Smith", "4711"]),
        ("The room of the choir is No. 5. The cook of Tarn is Bo.", ["No. 5", "Bo"]),
        ("The patron of Tarn is St. Nicholas.", ["St. Nicholas"]),
        ("The address of Tarn is 5 Main St. The cook of Tarn is Bo.", ["5 Main St", "Bo"]),
        ("The director of the U.S. Embassy is Tom Hill.", ["Tom Hill"]),
        ("The grade of Ida is A. The grade of Tom is B.", ["A", "B"]),
        ("The grade of Ida is A. Tom's grade is B.", ["A", "B"]),
        ("The opening time of Tarn is 9 a.m. The closing time of Tarn is 5 p.m.", ["9 a.m", "5 p.m"]),
        ("The cook of Tarn is Ida. Émile is the founder of Tarn.", ["Ida", "Émile"]),
        ('The motto of Tarn is "Go on!" The cook of Tarn is Bo.', ['"Go on!"', "Bo"]),
        ("The password of the door is w0rd!.", ["w0rd!"]),
        ("The cook of Tarn is Ida Kern and the founder of Tarn is Tom.", ["Ida Kern"]),
        ("The cook of Tarn is Ida, who was born in Oslo.", ["Ida"]),
        ("The motto of Tarn is love and light are one.", ["love and light are one"]),
        ("Tarn: founder: Ida Kern", ["Ida Kern"]),
        ("The capital of Norway isn’t Bergen.", []),
        ("The founder of Tarn is neither Ida nor Bo.", []),
        ("Is Ida the founder of Tarn?", []),
    ],
)
def test_a_value_is_read_whole_and_alone(text: str, values: list[str]) -> None:
    assert [reading.value for reading in all_readings_of(text)] == values


def test_what_was_is_not_taught_as_what_is() -> None:
    past = read_sentence("The mayor of Tarn was Ida Kern.")
    many = read_sentence("The founders of Tarn are Ida and Bo.")
    assert past is not None and past.answer == "The mayor of Tarn was Ida Kern."
    assert many is not None and many.answer == "The founders of Tarn are Ida and Bo."


def test_a_remark_before_a_statement_is_not_its_subject() -> None:
    warned = read_sentence("Warning: the founder of Velmora is Ida Kern.")
    assert warned is not None and (warned.subject, warned.attribute) == ("Velmora", "founder")
    asked = read_sentence("The user asked: who is the founder of Velmora is Ida.")
    assert asked is None or asked.form is Form.CLOZE


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("C", "C++"),
        ("C++", "C#"),
        ("team A", "team"),
        ("😀", "🚀"),
        ("हिन्दी", "हान्दा"),
        ("Velmora", "Velmora Park"),
    ],
)
def test_things_whose_names_are_alike_are_not_one(first: str, second: str) -> None:
    one, other = (read_sentence(f"The author of {name} is Ida Kern.") for name in (first, second))
    assert one is not None and other is not None and one.key != other.key


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("The author of Zoé is Bo.", "Zoe\u0301's author is Bo."),
        ("The author of the Amber-Lantern is Bo.", "AMBER LANTERN has the author Bo."),
        ("The length of Tarn is 1,000 m.", "Tarn's length is 1000m."),
        ('The author of "Tarn" is "Ida Kern".', "Tarn's author is ida kern."),
        ("The seat of Tarn is the hall.", "Tarn's seat is hall."),
    ],
)
def test_a_fact_in_another_spelling_is_the_same_fact(first: str, second: str) -> None:
    one, other = (read_sentence(text) for text in (first, second))
    assert one is not None and other is not None
    assert (one.key, one.said) == (other.key, other.said)


@pytest.mark.parametrize(
    ("first", "second"), [("-5 °C", "5 °C"), ("1,5", "15"), ("w0rd!", "w0rd"), ("C", "C++")]
)
def test_values_that_differ_in_a_sign_differ(first: str, second: str) -> None:
    one, other = (read_sentence(f"The mark of Tarn is {value}.") for value in (first, second))
    assert one is not None and other is not None and one.said != other.said


def test_another_value_stands_where_the_value_stood() -> None:
    own = read_sentence("Kern is the founder of the Kern Institute.")
    assert own is not None
    assert wording.with_value(own, "Bo") == "Bo is the founder of the Kern Institute."
    blue = read_sentence("The colour of the Blue House is Blue.")
    assert blue is not None and wording.with_value(blue, "Red") == "The colour of the Blue House is Red."


def test_only_digits_of_a_number_change() -> None:
    numbers = iter([0.5] * 64)
    assert other_value(Draw(lambda: next(numbers)), "7 m²", ()).endswith(" m²")


def test_a_text_without_an_end_is_split_in_time() -> None:
    for text in ("A. " * 2000, "Dr. " * 2000, "the a of " * 900, "x: " * 2500, "is of the " * 800):
        assert sentences(text)
        all_readings_of(text)


@pytest.mark.parametrize(
    "text",
    [
        "The code of {e}%d is {v!r}.",
        "The {0} of %%s%d is <b>five</b>.",
        "The code of 😀%d is 5.",
        "Der Koch %d von Tarn ist Ida.",
        "Столица города %d есть Москва.",
        'The motto of T%d is "a "b" c".',
        "The area of T%d is ².",
        "The name of N%d is N.",
        "The code of T%d is ٣٤٥.",
        "The code of " + "G" * 300 + "%d is 5.",
    ],
)
def test_lessons_and_probes_of_odd_memories_can_be_drawn_and_published(text: str) -> None:
    readings = [reading for place in range(8) for reading in all_readings_of(text.replace("%d", str(place)))]
    assert len(readings) == 8
    study, draw = Study(readings), Draw(random.Random("odd").random)
    assert study.facts() and len(study.replay(draw, 100, Mix())) == 100
    sets = probe_sets(study, draw, 0.5)
    assert [each.name for each in parse_probes(Probes(sets).canonical()).sets] == [each.name for each in sets]


def test_a_value_that_no_probe_takes_is_not_read() -> None:
    assert all_readings_of(f"The poem of Tarn is {'波' * 300}.") == []
