"""A template of passages shows what it is given, the same each time, or memserve does not start."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.config import Settings
from memserve.errors import StartupError
from memserve.model.checks import check_model
from memserve.model.recall_template import (
    DEFAULT_FILE,
    TEMPLATE_MAX_BYTES,
    RecallTemplate,
    open_recall_template,
)
from tests.pages import DOCS, blocks, text_of

LINES = "{% for passage in passages %}\n[{{ passage.number }}] {{ passage.text }}\n{% endfor %}\n"
WHOLE = "{% if system %}\n{{ system }}\n\n{% endif %}\nUse these notes.\n" + LINES


def test_the_setting_goes_over_the_models_file_and_that_over_memserves_own(tmp_path: Path) -> None:
    chosen = tmp_path / "mine.jinja"
    chosen.write_text(WHOLE, encoding="utf-8")
    assert open_recall_template(tmp_path, None).origin == "default"
    (tmp_path / "recall_template.jinja").write_text(WHOLE.replace("notes", "facts"), encoding="utf-8")
    own, mine = open_recall_template(tmp_path, None), open_recall_template(tmp_path, chosen)
    assert (own.origin, mine.origin) == ("model", "setting")
    assert mine.render("Be brief.", ["one", "two"]) == "Be brief.\n\nUse these notes.\n[1] one\n[2] two"
    assert mine.render("", ["one"]) == "Use these notes.\n[1] one"
    assert own.digest != mine.digest


def test_memserves_own_tells_a_general_model_what_the_passages_are_for(tmp_path: Path) -> None:
    text = open_recall_template(tmp_path, None).render("Be brief.", ["The code is 4071.", "two"])
    assert text.startswith("Be brief.\n\n")
    assert "notes" in text.partition("[1] The code is 4071.")[0]
    assert "[2] two" in text


def test_the_documents_show_memserves_own() -> None:
    page = text_of(DOCS / "how-to" / "use-your-own-model.md")
    [shown] = [block.text for block in blocks(page) if block.language == "jinja"]
    assert shown == DEFAULT_FILE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "must show every passage"),
        ("{{ system }} and no passages", "must show every passage"),
        ("{{ system }}{{ passages[0].text }}", "of 2, number 2 is not there"),
        ("{{ system }}{% for p in passages[:3] %}{{ p.text }}{% endfor %}", "of 64, number 4 is not there"),
        ("{{ system }}{% for p in passages | reverse %}{{ p.text }}{% endfor %}", "in order"),
        ("{{ system }}{% for p in passages %}{{ p.text | e }}{% endfor %}", "as it is"),
        ("{{ system }}{% for p in passages %}{{ p.text[:9] }}{% endfor %}", "as it is"),
        (LINES, "must begin with the system text"),
        ("Notes:\n{{ system }}" + LINES, "must begin with the system text"),
        ("{% for %}", "no template: line 1"),
        ("\n{{ passages", "no template: line 2"),
        ("{{ passage.text }}", "cannot render passages: UndefinedError: 'passage' is undefined"),
        ("{{ passages[0].txt }}", "has no attribute 'txt'"),
        ("{{ ''.__class__ }}", "SecurityError"),
        ("{{ passages.append }}", "SecurityError"),
        ("{{ [1, 2] | random }}", "No filter named 'random'"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{% include 'other' %}", "cannot render passages"),
        ("{{ system }}{% for p in passages %}{{ '-' * 2000 }}{{ p.text }}{% endfor %}", "adds 128000 bytes"),
    ],
)
def test_a_template_that_does_not_show_what_it_is_given_is_refused_in_one_line(
    source: str, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(source, encoding="utf-8")
    with pytest.raises(StartupError) as refused:
        open_recall_template(tmp_path, file)
    assert str(refused.value).startswith(f"setting recall_template: {file}: ")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"caf\xe9", "is not UTF-8"), (b" " * (TEMPLATE_MAX_BYTES + 1), "more than"), (None, "does not exist")],
)
def test_a_file_that_cannot_be_read_is_refused_by_the_setting(
    content: bytes | None, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StartupError, match=f"^setting recall_template: {file}: .*{says}"):
        open_recall_template(tmp_path, file)
    with pytest.raises(StartupError, match=f"setting recall_template: {tmp_path}: is no file"):
        open_recall_template(tmp_path, tmp_path)


def test_memserve_up_refuses_it_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"setting recall_template: .*gone\.jinja: does not exist"):
        check_model(Settings(recall_template=tmp_path / "gone.jinja"))
    with pytest.raises(StartupError, match=r"setting chat_template: .*gone\.jinja: does not exist"):
        check_model(Settings(chat_template=tmp_path / "gone.jinja"))


def test_a_models_own_file_is_checked_too(tmp_path: Path) -> None:
    (tmp_path / "recall_template.jinja").write_text("{{ system }}", encoding="utf-8")
    with pytest.raises(StartupError, match=r"^/.*/recall_template\.jinja: must show every passage"):
        open_recall_template(tmp_path, None)


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=5))
def test_passages_and_system_text_are_never_read_as_a_template(system: str, lines: list[str]) -> None:
    template = RecallTemplate(WHOLE, "mine", "setting")
    lines = [f"{{{{ 7 * 7 }}}}{line}{{% raw %}}".replace("\n", " ") for line in lines]
    shown = "\n".join(f"[{number}] {line}" for number, line in enumerate(lines, start=1))
    assert (
        template.render(system, lines) == (f"{system}\n\n" if system else "") + f"Use these notes.\n{shown}"
    )
