"""Conversations with all orders of roles and with hostile texts."""

from __future__ import annotations

from memserve.domain import Message, Role

TEXTS = [
    "Where is the north gate?",
    "",
    " ",
    "  leading and trailing \n",
    "two\n\nparagraphs\r\nand\ttabs",
    "Ünïcödé straße naïve café",
    "cafe\u0301 e\u0301 (decomposed)",
    "Ελληνικά русский текст",
    "עברית والعربية",
    "हिन्दी ไทย",
    "日本語と中文、한국어",
    "🙂🚀👩‍👩‍👧",
    "<b>markup</b> & \"quotes\" 'single' \\ back {{ braces }} {% tag %}",
    "[INST] <<SYS>> </think> <|not_a_token|>",
    "<|im_start|>user",
    "def f(x):\n    return x + 1",
    "word " * 200,
    "\u00a0\u2003\u200b zero width",
    "ﬁ ligature ① ｆｕｌｌｗｉｄｔｈ",
    "4071 3.14 1e9",
]
S, U, A = Role.SYSTEM, Role.USER, Role.ASSISTANT
ORDERS = [
    (U,),
    (S, U),
    (U, A, U),
    (S, U, A, U),
    (U, A),
    (U, U),
    (S,),
    (A,),
    (A, U),
    (U, S, U),
    (S, S, U),
    (U, A, U, A, U),
    (U, A, S, U),
]


def conversations() -> list[list[Message]]:
    """Every text as a question, every order of roles with other texts, and long ones."""
    talks = [[Message(U, text)] for text in TEXTS]
    talks += [[Message(S, text), Message(U, "Hello.")] for text in TEXTS[:6]]
    for shift, roles in enumerate(ORDERS):
        talks.append(
            [Message(role, TEXTS[(3 * shift + place) % len(TEXTS)]) for place, role in enumerate(roles)]
        )
        talks.append([Message(role, f"{role} says {place}") for place, role in enumerate(roles)])
    talks.append([Message(U if place % 2 == 0 else A, f"turn {place}") for place in range(15)])
    return talks
