"""How blocks become passages: sizes, places to cut, nothing lost."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memserve.errors import InvalidField
from memserve.memory.documents.bounds import PassageSizes
from memserve.memory.documents.document import Block, BlockKind, Document
from memserve.memory.documents.parsing import parse_document
from memserve.memory.documents.passages import DocumentPassage, passages_of
from memserve.memory.documents.sentences import pieces_of, sentences

SMALL = PassageSizes(target_characters=100, max_bytes=1024)
WORDS = st.text("abcdeäßжя字水กน", min_size=1, max_size=12)
# The last word is neither an initial nor an abbreviation: a full stop behind those ends no sentence.
SENTENCES = st.builds(
    lambda words, end: " ".join(words) + "eee" + end,
    st.lists(WORDS, min_size=1, max_size=12),
    st.sampled_from(".!?。।؟"),
)
PARAGRAPHS = st.lists(st.lists(SENTENCES, min_size=1, max_size=12), min_size=1, max_size=6)


def cut(kind: BlockKind, text: str, sizes: PassageSizes = SMALL, **more: str) -> list[str]:
    document = Document("", "text/plain", (Block(kind, text, **more),))
    return [passage.body for passage in passages_of(document, sizes)]


def check_sizes(passages: tuple[DocumentPassage, ...], sizes: PassageSizes) -> None:
    assert [passage.position for passage in passages] == list(range(len(passages)))
    for passage in passages:
        assert len(passage.text.encode()) <= sizes.max_bytes
        assert passage.text.endswith(passage.body) and passage.body.strip()


@settings(max_examples=40, deadline=None)
@given(paragraphs=PARAGRAPHS)
def test_every_sentence_of_a_text_is_in_exactly_one_passage(paragraphs: list[list[str]]) -> None:
    marked = [
        [f"<{row}/{place}> {sentence}" for place, sentence in enumerate(paragraph)]
        for row, paragraph in enumerate(paragraphs)
    ]
    text = "\n\n".join(" ".join(paragraph) for paragraph in marked)
    passages = passages_of(parse_document(text.encode(), title="T"), SMALL)
    check_sizes(passages, SMALL)
    for sentence in (sentence for paragraph in marked for sentence in paragraph):
        if len(sentence) <= 2 * SMALL.target_characters:
            assert sum(passage.body.count(sentence) for passage in passages) == 1
    assert "".join("".join(passage.body.split()) for passage in passages) == "".join(text.split())


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=3_000), kind=st.sampled_from(BlockKind), title=st.text(max_size=400))
def test_any_text_is_cut_within_its_sizes_and_not_a_character_is_lost(
    text: str, kind: BlockKind, title: str
) -> None:
    if not text.strip():
        return
    text = text.encode(errors="replace").decode()
    title = " ".join(title.encode(errors="replace").decode().split())
    document = Document(title, "text/plain", (Block(kind, text, ("Above",)),))
    passages = passages_of(document, SMALL)
    check_sizes(passages, SMALL)
    assert "".join("".join(passage.body.split()) for passage in passages) == "".join(text.split())


@settings(max_examples=40, deadline=None)
@given(words=st.lists(st.text("abcde", min_size=1, max_size=30), min_size=1, max_size=200))
def test_no_word_is_cut(words: list[str]) -> None:
    assert [word for body in cut(BlockKind.TEXT, " ".join(words)) for word in body.split()] == words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One. ", "Two! ", "Three? ", "Four"]),
        (
            "See Dr. Smith, e.g. at 3.14 p.m. today. Then go.",
            ["See Dr. Smith, e.g. at 3.14 p.m. today. ", "Then go."],
        ),
        ("He said “Go.” She went... And (yes.) no", ["He said “Go.” ", "She went... ", "And (yes.) no"]),
        ("これは文です。「次！」終わり？はい", ["これは文です。", "「次！」", "終わり？", "はい"]),
        ("यह वाक्य है। दूसरा॥ तीसरा", ["यह वाक्य है। ", "दूसरा॥ ", "तीसरा"]),
        ("ما هذا؟ هذا كتاب. نعم۔ لا", ["ما هذا؟ ", "هذا كتاب. ", "نعم۔ ", "لا"]),
        ("ይህ ነው። ሌላ።", ["ይህ ነው። ", "ሌላ።"]),
        ("ဒါက။ နောက်", ["ဒါက။ ", "နောက်"]),
        ("", []),
    ],
)
def test_sentences_end_as_their_script_has_it(text: str, expected: list[str]) -> None:
    assert list(sentences(text)) == expected


def test_a_long_sentence_is_cut_behind_a_clause() -> None:
    text = "ab " * 25 + "cd, " + "ef " * 60 + "gh"
    bodies = cut(BlockKind.TEXT, text)
    assert bodies[0].endswith("cd,") and all(len(body) <= 100 for body in bodies)


def test_a_word_that_does_not_fit_is_cut_between_characters_as_a_reader_sees_them() -> None:
    accents = "e\u0301" * 400
    assert all(body[0] == "e" for body in cut(BlockKind.TEXT, accents))
    flags = "🇩🇪" * 300
    family = "👨\u200d👩\u200d👧" * 300
    for text, size in ((flags, 2), (family, 5)):
        assert all(len(body) % size == 0 for body in cut(BlockKind.TEXT, text))


def test_a_tables_header_row_is_in_each_piece_and_no_row_is_cut() -> None:
    rows = [f"| row {number} | {'x' * (number % 30)} |" for number in range(100)]
    bodies = cut(BlockKind.TABLE, "\n".join(rows), opening="| name | value |")
    assert len(bodies) > 10
    assert all(body.startswith("| name | value |\n| row") for body in bodies)
    assert [row for body in bodies for row in body.split("\n")[1:]] == rows


def test_a_header_row_that_would_fill_a_passage_is_not_repeated() -> None:
    header = f"| {'h' * 900} |"
    bodies = cut(BlockKind.TABLE, "\n".join(f"| {n} |" for n in range(300)), opening=header)
    assert sum(header in body for body in bodies) == 1


def test_code_is_whole_where_it_fits_and_cut_between_lines_where_it_does_not() -> None:
    short = "\n".join(f"    line_{number} = 1" for number in range(40))
    (body,) = cut(BlockKind.CODE, short, opening="```py", closing="```")
    assert body == f"```py\n{short}\n```"
    long = "\n".join(f"    line_{number} = 1" for number in range(200))
    bodies = cut(BlockKind.CODE, long, opening="```py", closing="```")
    assert len(bodies) > 3
    assert all(body.startswith("```py\n    line") and body.endswith("= 1\n```") for body in bodies)
    assert [line for body in bodies for line in body.split("\n")[1:-1]] == long.split("\n")


def test_items_stay_whole_and_on_lines_of_their_own() -> None:
    items = tuple(Block(BlockKind.ITEM, f"- item {number}\n  - {'x' * 40}") for number in range(20))
    bodies = [passage.body for passage in passages_of(Document("", "text/plain", items), SMALL)]
    assert "\n".join(bodies) == "\n".join(block.text for block in items)
    assert all(body.startswith("- item") for body in bodies)
    assert len(bodies) > 5


def test_what_is_short_is_not_left_alone() -> None:
    intro = Block(BlockKind.TEXT, "The values:")
    table = Block(BlockKind.TABLE, "\n".join(f"| {n} | {'x' * 20} |" for n in range(6)))
    (passage,) = passages_of(Document("", "", (intro, table)), SMALL)
    assert passage.body == f"{intro.text}\n\n{table.text}"
    paragraphs = tuple(Block(BlockKind.TEXT, letter * 90) for letter in "abc")
    bodies = [passage.body for passage in passages_of(Document("", "", (*paragraphs, intro)), SMALL)]
    assert [len(body) for body in bodies] == [90, 90, 90 + 2 + 11]


def test_a_passage_has_text_below_one_heading_only() -> None:
    blocks = tuple(Block(BlockKind.TEXT, f"text {n}", (f"h{n // 2}",)) for n in range(6))
    passages = passages_of(Document("", "text/plain", blocks), PassageSizes())
    assert [passage.body for passage in passages] == [
        "text 0\n\ntext 1",
        "text 2\n\ntext 3",
        "text 4\n\ntext 5",
    ]


def test_tokens_are_counted_with_title_and_headings() -> None:
    blocks = (Block(BlockKind.TEXT, "a b c d e f. " * 200, ("Some heading", "Another one")),)
    sizes = PassageSizes(max_tokens=40)
    passages = passages_of(
        Document("The title", "", blocks), sizes, count_tokens=lambda text: len(text.split())
    )
    assert len(passages) >= 30 and all(len(passage.text.split()) <= 40 for passage in passages)
    assert all(passage.text.startswith("The title › Some heading › Another one\n\n") for passage in passages)


def test_a_title_gives_way_to_the_text() -> None:
    long = "very " * 100
    document = Document(long, "", (Block(BlockKind.TEXT, "x. " * 500, (long, "Inner")),))
    passages = passages_of(document, PassageSizes(max_tokens=32), count_tokens=len)
    assert all(len(passage.text) <= 32 for passage in passages)
    assert passages[0].text.startswith("Inner\n\nx.") and passages[0].title == long


def test_a_control_token_refuses_the_document_and_names_the_place() -> None:
    blocks = tuple(Block(BlockKind.TEXT, text, ("Part",), page=7) for text in ("a" * 90, "b" * 95, "<|end|>"))
    document = Document("T", "application/pdf", blocks)
    with pytest.raises(InvalidField) as refused:
        passages_of(document, SMALL, control_token=lambda text: "<|end|>" if "<|end|>" in text else None)
    rule = refused.value.rule
    assert rule == "has the control token <|end|> in passage 1 on page 7 (T › Part)"


@pytest.mark.parametrize("field", ["target_characters", "max_bytes", "max_tokens", "max_passages"])
def test_sizes_have_bounds(field: str) -> None:
    with pytest.raises(InvalidField, match=field):
        PassageSizes(**{field: 0})


def test_too_many_passages_are_refused() -> None:
    document = parse_document(b"word.\n\n" * 3_000)
    with pytest.raises(InvalidField, match="at most 10 passages"):
        passages_of(document, PassageSizes(target_characters=100, max_passages=10))


@pytest.mark.parametrize(
    "text", ["." * 200_000, ".a" * 100_000, ". " * 100_000, "a" * 200_000, "\n" * 200_000 + "x"]
)
def test_cutting_takes_time_in_proportion_to_the_text(text: str) -> None:
    def took_s(part: str) -> float:
        began_s = time.process_time()
        assert sum(1 for _ in sentences(part)) + sum(1 for _ in pieces_of(part, lambda _: True, 1_000))
        return time.process_time() - began_s

    quarter_s = min(took_s(text[: len(text) // 4]) for _ in range(3))
    assert took_s(text) < 10 * quarter_s + 0.05
