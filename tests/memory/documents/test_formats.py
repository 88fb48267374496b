"""What each format's structure becomes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from runpy import run_path

import pytest
from selectolax.lexbor import LexborHTMLParser

from memserve.errors import InvalidField
from memserve.memory.documents.bounds import PassageSizes
from memserve.memory.documents.document import Block, BlockKind, Document
from memserve.memory.documents.parsing import parse_document
from memserve.memory.documents.passages import passages_of

pdf: Callable[..., bytes] = run_path(str(Path(__file__).parent / "pdfs.py"))["pdf"]

WORD = re.compile("w[0-9a-f]{16}")
TAG_NAMES = (
    "p div section ul ol li table tr td th thead tbody caption h1 h2 b i a span pre code blockquote br dl dt"
    " dd details summary button select option textarea figure label main"
)
TAGS = TAG_NAMES.split()


def html(body: str) -> Document:
    return parse_document(body.encode(), "text/html")


def markdown(text: str) -> Document:
    return parse_document(text.encode(), "text/markdown")


def texts(document: Document) -> list[str]:
    return [block.text for block in document.blocks]


def test_a_passage_carries_its_title_and_headings() -> None:
    document = markdown(
        "# Pump\n\nIntro.\n\n## Care\n\n### Oil\n\nChange it in May.\n\n## Parts\n\nTwo seals."
    )
    passages = passages_of(document, PassageSizes())
    assert [passage.text for passage in passages] == [
        "Pump\n\nIntro.",
        "Pump › Care › Oil\n\nChange it in May.",
        "Pump › Parts\n\nTwo seals.",
    ]
    assert passages[1].title == "Pump" and passages[1].headings == ("Pump", "Care", "Oil")


def test_a_heading_without_text_is_not_lost() -> None:
    assert texts(markdown("# A\n\n## Planned\n\n## Done\n\nAll.\n\n## Later")) == ["Planned", "All.", "Later"]


def test_a_heading_as_long_as_a_paragraph_is_text_too() -> None:
    heading = "word " * 100
    (block,) = markdown(f"# {heading}").blocks
    assert block.text == heading.strip() and len(block.headings[0]) <= 200


def test_a_heading_in_a_quotation_or_an_item_is_text() -> None:
    document = markdown("# A\n\n> # Quoted\n> text\n\n- # Item\n\nlast")
    assert [(block.text, block.headings) for block in document.blocks] == [
        (text, ("A",)) for text in ("Quoted", "text", "- Item", "last")
    ]


def test_items_keep_the_lists_inside_them() -> None:
    document = markdown("3. mix\n   - flour\n   - water\n\n     cold\n4. bake\n")
    assert [(block.kind, block.text) for block in document.blocks] == [
        (BlockKind.ITEM, "3. mix\n  - flour\n  - water\n    cold"),
        (BlockKind.ITEM, "4. bake"),
    ]


def test_code_keeps_its_lines_and_its_language() -> None:
    (block,) = markdown("```python\ndef f():\n\n    return '<b>'\n```\n").blocks
    assert block == Block(BlockKind.CODE, "def f():\n\n    return '<b>'", opening="```python", closing="```")


def test_a_fence_is_longer_than_the_backticks_in_the_code() -> None:
    (block,) = markdown("`````\n```\nx\n````\n`````\n").blocks
    assert block.opening == block.closing == "`````"


def test_a_table_has_its_header_row_apart() -> None:
    (block,) = markdown("|name|size|\n|-|-|\n|a\\|b|1|\n|c|2|\n").blocks
    assert (block.opening, block.text) == ("| name | size |", "| a\\|b | 1 |\n| c | 2 |")


def test_a_table_without_a_header_row_repeats_none() -> None:
    (block,) = html("<table><tr><td>a<td>b<tr><td>c<td>d</table>").blocks
    assert (block.opening, block.text) == ("", "| a | b |\n| c | d |")


def test_a_table_that_places_parts_of_a_page_is_no_table() -> None:
    document = html("<table><tr><td><h2>Menu</h2><p>One.</p><td><ul><li>x</ul></table>")
    assert [(block.text, block.headings) for block in document.blocks] == [
        ("One.", ("Menu",)),
        ("- x", ("Menu",)),
    ]


@pytest.mark.parametrize(
    "unseen",
    [
        "<script>SECRET</script>",
        "<style>.SECRET{}</style>",
        "<!-- SECRET -->",
        "<p hidden>SECRET</p>",
        "<div aria-hidden='true'><p>SECRET</p></div>",
        "<p style='color:red; Display : NONE'>SECRET</p>",
        "<span style='visibility:hidden'>SECRET</span>",
        "<template><p>SECRET</p></template>",
        "<noscript>SECRET</noscript>",
        "<svg><text>SECRET</text></svg>",
        "<h2>a<i hidden>SECRET</i></h2>b",
        "<pre>a<i hidden>SECRET</i></pre>",
        "<table><tr hidden><td>SECRET<tr><td>b</table>",
        "<table><tr><td>a<td hidden>SECRET<td>b</table>",
        "<table hidden><tr><td>SECRET</table>",
        "<ul><li>a<li hidden>SECRET</ul>",
        "<p title='SECRET'>a</p>",
    ],
)
@pytest.mark.parametrize("read", [html, markdown])
def test_what_a_reader_does_not_see_is_left_out(read: Callable[[str], Document], unseen: str) -> None:
    document = read(f"<p>before</p>\n\n{unseen}\n\n<p>after</p>\n")
    shown = str(document)
    assert "SECRET" not in shown
    assert "before" in shown and "after" in shown


def test_blocks_and_line_breaks_set_text_apart() -> None:
    document = html("<p>one<br>two <b>three</b>\n  four<div>five</div><img alt='a dog'>six")
    assert texts(document) == ["one\ntwo three four", "five", "a dog six"]


@pytest.mark.parametrize("seed", range(5))
def test_no_word_of_a_page_is_lost_or_there_twice(seed: int) -> None:
    """Elements of all kinds inside each other, also where HTML does not allow them."""
    draws = random.Random(seed)
    for _ in range(60):
        page = _random_html(draws, 0)
        document = html(f"{page} end")
        shown = [word for block in document.blocks for word in WORD.findall(f"{block.opening} {block.text}")]
        above = {word for block in document.blocks for word in WORD.findall(str(block.headings))}
        visible = WORD.findall(LexborHTMLParser(page).body.text())
        assert sorted(shown) == sorted(set(shown)), page
        assert set(shown) | above == set(visible), page


def _random_html(draws: random.Random, depth: int) -> str:
    parts = []
    for _ in range(draws.randint(1, 4)):
        if depth > 6 or draws.random() < 0.45:
            parts.append(f" w{draws.getrandbits(64):016x} ")
        else:
            tag = draws.choice(TAGS)
            end = f"</{tag}>" if draws.random() < 0.9 else ""
            parts.append(f"<{tag}>" if tag == "br" else f"<{tag}>{_random_html(draws, depth + 1)}{end}")
    return "".join(parts)


def test_an_unknown_entity_stays_as_it_is_and_expands_to_nothing_else() -> None:
    document = html('<!DOCTYPE html [<!ENTITY lol "ha"><!ENTITY l2 "&lol;&lol;">]><p>&l2; &amp;')
    assert texts(document)[-1].endswith("&l2; &")


@pytest.mark.parametrize(
    ("content", "media_type", "title"),
    [
        (b"<title>The\n title</title><h1>H</h1>x", "text/html", "The title"),
        (b"<h1>H</h1>x", "text/html", "H"),
        (b"<h1>H</h1>x<h1>I</h1>y", "text/html", "file name"),
        (b"---\ntitle: 'Front'\ntags: [a]\n---\n# H\n\nx", "text/markdown", "Front"),
        (b"# H\n\nx", "text/markdown", "H"),
        (b"x", "text/plain", "file name"),
    ],
)
def test_a_title_comes_from_the_best_place(content: bytes, media_type: str, title: str) -> None:
    assert parse_document(content, media_type, file_name="a/file name.md").title == title
    assert parse_document(content, media_type, title="Mine").title == "Mine"


def test_front_matter_is_told_and_a_rule_is_none() -> None:
    assert markdown("---\ntitle: x\n---\ntext").left_out == ("the front matter of the Markdown",)
    assert markdown("---\n\nsome: text\n\n---\n").left_out == ()


def test_plain_text_keeps_its_lines() -> None:
    document = parse_document(b"A line\r\n  and another\r\n\r\n \r\n# no heading")
    assert texts(document) == ["A line\n  and another", "# no heading"]


def test_a_pdf_has_pages_bookmarks_and_a_title() -> None:
    content = pdf(
        [["Care", "Oil it in May. Use the"], ["mineral oil. It is cheap."], ["Parts", "Two seals."]],
        title="Pump",
        bookmarks=[("Care", 0), ("Index", 2)],
    )
    document = parse_document(content)
    assert document.title == "Pump"
    assert [(block.text, block.headings, block.page) for block in document.blocks] == [
        ("Oil it in May. Use the mineral oil.", ("Care",), 1),
        ("It is cheap.", ("Care",), 2),
        ("Parts Two seals.", ("Index",), 3),
    ]


def test_a_word_that_a_line_ends_in_is_whole_again() -> None:
    lines = ["The exam-", "ple is well-", "known. A well-known one, and 3-", "4 others"]
    (block,) = parse_document(pdf([lines])).blocks
    assert block.text == "The example is well-known. A well-known one, and 3- 4 others"


def test_a_page_without_the_end_of_a_sentence_has_paragraphs_of_its_own() -> None:
    rows = [[f"row {page} {line}" for line in range(8)] for page in (1, 2)]
    document = parse_document(pdf(rows))
    assert [(block.text[:7], block.page) for block in document.blocks] == [("row 1 0", 1), ("row 2 5", 2)]
    assert " ".join(texts(document)) == " ".join(line for page in rows for line in page)


def test_pages_without_text_are_told() -> None:
    document = parse_document(pdf([["a"], [], ["b"], []]))
    assert document.left_out == ("pages without text, which may be images: 2, 4",)


@pytest.mark.parametrize(
    ("content", "media_type", "file_name", "field", "rule"),
    [
        (b"PK\x03\x04abc", "", "a.docx", "document", "ZIP"),
        (b"PK\x03\x04abc", "text/plain", "a.txt", "document", "ZIP"),
        (b"\x1f\x8babc", "text/html", "a.html.gz", "document", "gzip"),
        (b"\x89PNG\r\n", "", "", "document", "PNG"),
        (b"%PDF-1.7", "text/plain", "", "media_type", "is text/plain, and the document is application/pdf"),
        (b"hello", "application/pdf", "", "media_type", "is application/pdf, and the document is no PDF"),
        (b"hello", "", "a.pdf", "file_name", "ends in .pdf"),
        (b"%PDF-1.7", "", "a.md", "file_name", "ends in .md"),
        (b" <!DOCTYPE html><p>a", "text/plain", "", "media_type", "is text/plain"),
        (b"hello", "application/msword", "", "media_type", "must be one of"),
        (b"hello", "text/plain; charset=zlib_codec", "", "media_type", "zlib_codec"),
        (b"hello", "x" * 201, "", "media_type", "at most 200"),
        (b"", "", "", "document", "empty"),
        (b" \n\t", "", "", "document", "no text"),
        (b"<script>a</script>", "text/html", "", "document", "no text"),
        (b"abc\xff", "", "", "document", "offset 3"),
        (b"\xef\xbb\xbfab\xff", "", "", "document", "offset 5"),
        (b"a\x00b", "", "", "document", "NUL at character 1"),
        (b"\xff\xfe\x00\x00a", "", "", "document", "UTF-32"),
        ("<meta charset=nonsense>é".encode(), "text/html", "", "document", "nonsense"),
    ],
)
def test_what_cannot_be_read_is_refused(
    content: bytes, media_type: str, file_name: str, field: str, rule: str
) -> None:
    with pytest.raises(InvalidField) as refused:
        parse_document(content, media_type, file_name=file_name)
    assert refused.value.field == field and rule in refused.value.rule


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        ("žluť".encode(), ""),
        ("\ufeffžluť".encode(), "text/plain"),
        ("\ufeffžluť".encode("utf-16-le"), ""),
        ("\ufeffžluť".encode("utf-16-be"), "text/markdown"),
        ("žluť".encode("cp1250"), "text/plain; charset=Windows-1250"),
        ("<meta charset='iso-8859-2'>žluť".encode("iso8859-2"), "text/html"),
        (
            '<META http-equiv=content-type content="text/html; charset=windows-1250">žluť'.encode("cp1250"),
            "text/html",
        ),
        ("<meta charset=utf-16>žluť".encode(), "text/html"),
        ("z\u030clut\u030c".encode(), ""),
    ],
)
def test_a_text_is_read_in_its_encoding_and_kept_in_nfc(content: bytes, media_type: str) -> None:
    assert texts(parse_document(content, media_type)) == ["žluť"]


def test_the_bytes_and_the_name_say_the_format_where_the_sender_does_not() -> None:
    assert parse_document(b"<html><p>a").media_type == "text/html"
    assert parse_document(b"# a", file_name="README.MD").media_type == "text/markdown"
    assert parse_document(pdf([["a"]]), "application/octet-stream").media_type == "application/pdf"
    assert parse_document(b"\n" + pdf([["a"]]), "application/pdf").media_type == "application/pdf"
    assert parse_document(b"# a").media_type == "text/plain"
