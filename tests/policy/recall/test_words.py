"""Words in any script: what a person searches for is found in what was written."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.policy.recall.ranking import query_words
from memserve.policy.recall.words import words_of


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("The code of Amber Lantern is 4071.", "LANTERN"),
        ("北京的天气今天很好", "天气"),
        ("我喜欢在周末爬山", "爬山"),
        ("上海的交通非常拥堵", "交通"),
        ("パスワードは青い箱の中にあります", "青い箱"),
        ("パスワードは青い箱の中にあります", "パスワード"),
        ("東京都の図書館", "図書館"),
        ("ｶﾀｶﾅ", "カタカナ"),
        ("회의는 화요일 오후에 열립니다", "회의"),
        ("회의는 화요일 오후에 열립니다", "화요일"),
        ("비밀번호는 서랍에 있습니다", "서랍"),
        ("รหัสผ่านอยู่ในกล่องสีฟ้า", "รหัสผ่าน"),
        ("ລະຫັດຢູ່ໃນກ່ອງ", "ລະຫັດ"),
        ("លេខកូដនៅក្នុងប្រអប់", "លេខកូដ"),
        ("लाल किताब अलमारी में है", "किताब"),
        ("কোডটি লাল বাক্সে আছে", "লাল"),
        ("சாவி பெட்டியில் உள்ளது", "சாவி"),
        ("الرمز في الصندوق الأزرق", "الصندوق"),
        ("הקוד נמצא בקופסה הכחולה", "הכחולה"),
        ("Пароль лежит в синей коробке", "ПАРОЛЬ"),
        ("Ο κωδικός είναι στο κουτί", "κουτί"),
        ("Der Schlüssel liegt in der Straße", "STRASSE"),
        ("café", "cafe\u0301"),
        ("ﬁle ①", "file 1"),
        ("ｆｕｌｌ ｗｉｄｔｈ", "full width"),
        ("İstanbul'da toplantı", "toplantı"),
    ],
)
def test_a_word_of_the_text_is_a_word_of_the_query(text: str, query: str) -> None:
    wanted = query_words(query)
    assert wanted
    assert set(wanted) <= set(words_of(text))


def test_words_of_other_texts_are_others() -> None:
    assert not set(words_of("天气")) & set(words_of("上海的交通非常拥堵"))
    assert not set(words_of("หนังสือ")) & set(words_of("รหัสผ่านอยู่ในกล่องสีฟ้า"))


def test_the_words_of_a_text_stand_in_its_order_with_their_other_forms_behind_them() -> None:
    words = words_of("Gate-7, the north_gate's code: 4071!")
    assert words == [
        "gate",
        "gat",
        "7",
        "gate7",
        "the",
        "north",
        "gate",
        "gat",
        "northgate",
        "s",
        "code",
        "cod",
        "4071",
    ]


@given(st.text(max_size=60))
def test_every_word_is_one_to_a_search_engine_whatever_the_normal_form(text: str) -> None:
    words = words_of(text)
    assert all(word.isalnum() for word in words)
    for form in ("NFC", "NFD"):
        assert words_of(unicodedata.normalize(form, text)) == words
