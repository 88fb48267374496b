"""Forms of words and codes: a form of the query's finds a form of the text's, within bounds."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.policy.recall.ranking import TERMS_MAX, index_words, query_terms
from memserve.policy.recall.words import WORDS_MAX, words_of


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Wir trafen uns im Café.", "cafe"),
        ("Wir trafen uns im Cafe.", "café"),
        ("Der Schluessel liegt dort.", "Schlüssel"),
        ("Der Ersatzschlüssel liegt dort.", "Schlüssel"),
        ("Der Schlüssel liegt dort.", "Hausschlüssel"),
        ("Die Jahresmiete steigt.", "Miete"),
        ("The gates open at noon.", "gate"),
        ("The door was opened.", "opening"),
        ("Запасные ключи лежат там", "ключ"),
        ("Ёлка стоит", "елка"),
        ("الرمز في الصندوق", "صندوق"),
        ("كُتُبٌ", "كتب"),
        ("مكتبـــة", "مكتبه"),
        ("أحمد", "احمد"),
        ("הַקּוֹד", "הקוד"),
        ("הקופסה", "קופסה"),
        ("绿茶很好", "茶"),
        ("北京的天气", "气"),
        ("सं १२३", "123"),
        ("file snake_case_name", "snake case"),
        ("calls fooBarBaz twice", "bar"),
        ("HTTPServer2 is up", "http server 2"),
        ("order AB-1234/7 came", "ab12347"),
        ("order AB-1234/7 came", "AB 1234"),
        ("order ab12347 came", "AB-1234/7"),
        ("release v1.2.3", "1.2.3"),
        ("4,071 crowns", "4071"),
        ("4071 crowns", "4.071"),
        ("on 2026-11-28", "28.11.2026"),
        ("on 28/11/2026", "2026-11-28"),
        ("on 11/28/2026", "2026-11-28"),
        ("mara.keller@harbor.example", "keller"),
        ("well-known", "wellknown"),
        ("0xDEADBEEF", "deadbeef"),
        ("agent 007", "7"),
    ],
)
def test_a_form_of_the_query_is_a_form_of_the_text(text: str, query: str) -> None:
    assert set(words_of(query)) & set(words_of(text))


@pytest.mark.parametrize(
    ("text", "query"),
    [("AB-1234/7", "AB-1234/8"), ("v1.2.3", "v1.2.4"), ("2026-11-28", "2026-11-29"), ("4,071", "4,072")],
)
def test_another_code_is_another_word(text: str, query: str) -> None:
    codes = [term for term in query_terms(query) if term.is_code]
    assert codes
    assert not {word for term in codes for word in term.words} & set(words_of(text))


def test_parts_of_a_code_count_less_than_the_whole_of_it() -> None:
    weights = {term.words[0]: term.weight for term in query_terms("AB-1234/7")}
    assert weights["ab12347"] > weights["ab"] == weights["1234"]


@pytest.mark.parametrize("hostile", ["9" * 8192, "1-" * 4096, "a.b" * 2700, "aB" * 4096, "ﷺ" * 2700])
def test_a_hostile_text_has_a_bounded_number_of_words(hostile: str) -> None:
    assert len(words_of(hostile)) <= WORDS_MAX


def test_a_text_of_the_greatest_size_takes_linear_time() -> None:
    text = ("Donaudampfschifffahrtsgesellschaft " * 250)[:8192]
    words_of(text)
    started_s = time.process_time()
    for _ in range(5):
        words_of(text)
    assert time.process_time() - started_s < 2.5


@given(st.text(max_size=60))
def test_words_are_the_same_in_every_normal_form(text: str) -> None:
    words = words_of(text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert words_of(unicodedata.normalize(form, text)) == words


@given(st.text(st.characters(exclude_categories=()), max_size=200))
def test_any_text_has_words_of_letters_and_digits_that_are_found_by_themselves(text: str) -> None:
    words = words_of(text)
    assert all(word.isalnum() for word in words)
    terms = query_terms(text)
    assert len(terms) <= TERMS_MAX
    assert set(index_words(terms)) <= set(words)


@given(st.text("abcÄöß0.-_/ ", max_size=80))
def test_a_text_is_found_by_each_of_its_own_terms(text: str) -> None:
    words = set(words_of(text))
    for term in query_terms(text):
        assert set(term.words) <= words
