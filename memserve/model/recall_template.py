"""The template that puts recalled passages into a prompt.

It is a file of the setting `recall_template`, else `recall_template.jinja` in the model's directory, else the
file of that name beside this one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import StrictUndefined, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from memserve.errors import StartupError
from memserve.model.files import template_text

RECALL_TEMPLATE_FILE = "recall_template.jinja"
DEFAULT_FILE = Path(__file__).with_name(RECALL_TEMPLATE_FILE)
TEMPLATE_MAX_BYTES = 16 << 10
# What a template may write beside the system text and the passages, for as many passages as a request can
# have.
ADDED_MAX_BYTES = 64 << 10
PASSAGES_MAX = 64
# Characters that a filter such as `escape` or `upper` would change.
_SYSTEM_PROBE = 'Answer <briefly> & "well"; it\'s {{ 7 * 7 }}.'
_PASSAGE_PROBE = 'Note {number}: <Mara>\'s "code" is & stays {{{{ 7 * 7 }}}} {{% raw %}}, mark {number}.'


class RecallTemplate:
    """A template that shows the system text first and every passage as it is."""

    origin: str
    """`setting`, `model` or `default`: where the template comes from."""
    digest: str
    """sha256 of the file, hex."""
    name: str
    """As an error message calls the template."""
    source: str
    """The file's text."""
    joint: str
    """What stands between two passages, with the number of the second."""

    def __init__(self, source: str, name: str, origin: str) -> None:
        """Raises StartupError for a template that does not show what it is given."""
        self.name = name
        self.origin = origin
        self.source = source
        self.digest = hashlib.sha256(source.encode()).hexdigest()
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise StartupError(f"{name}: no template: line {error.lineno}: {error.message}") from None
        try:
            for system in ("", _SYSTEM_PROBE):
                for count in (1, 2, PASSAGES_MAX):
                    self._check(system, _probes(count))
        except _Unfit as unfit:
            raise StartupError(f"{name}: {unfit}") from None
        except Exception as error:
            first_line = (str(error).strip().splitlines() or [""])[0]
            raise StartupError(
                f"{name}: cannot render passages: {type(error).__name__}: {first_line}"
            ) from None
        first, second = _probes(2)
        self.joint = self.render("", [first, second]).partition(first)[2].partition(second)[0]

    def render(self, system: str, passages: Sequence[str]) -> str:
        """The system text with the passages, without line ends behind it.

        system: the conversation's own system text; "" for none.
        passages: at least one.
        """
        numbered = [{"number": number, "text": text} for number, text in enumerate(passages, start=1)]
        return self._template.render(system=system, passages=numbered).rstrip("\n")

    def _check(self, system: str, passages: Sequence[str]) -> None:
        """Raises _Unfit, and whatever the template raises."""
        text = self.render(system, passages)
        if not text.startswith(system):
            raise _Unfit("must begin with the system text, so that a prefix with that text is found again")
        place = len(system)
        for number, passage in enumerate(passages, start=1):
            place = text.find(passage, place)
            if place < 0:
                raise _Unfit(f"must show every passage as it is and in order; of {len(passages)}, number "
                             f"{number} is not there")  # fmt: skip
            place += len(passage)
        added = len(text.encode()) - len("".join([system, *passages]).encode())
        if added > ADDED_MAX_BYTES:
            raise _Unfit(
                f"adds {added} bytes to {len(passages)} passages; at most {ADDED_MAX_BYTES} are allowed"
            )
        if self.render(system, passages) != text:
            raise _Unfit("must give the same text each time, so that a prompt's KV is found again")


class _Unfit(Exception):
    """A rule that a template breaks."""


def open_recall_template(model: Path, chosen: Path | None) -> RecallTemplate:
    """The template of a deployment. Raises StartupError.

    model: the model's directory. chosen: the file of the setting `recall_template`.
    """
    if chosen is not None:
        file, name, origin = chosen, f"setting recall_template: {chosen}", "setting"
    elif (own := model / RECALL_TEMPLATE_FILE).exists():
        file, name, origin = own, str(own), "model"
    else:
        file, name, origin = DEFAULT_FILE, str(DEFAULT_FILE), "default"
    return RecallTemplate(template_text(file, name, TEMPLATE_MAX_BYTES), name, origin)


def _probes(count: int) -> list[str]:
    return [_PASSAGE_PROBE.format(number=number) for number in range(1, count + 1)]


def _environment() -> ImmutableSandboxedEnvironment:
    """Without what would make two gateways' prompts different, and with errors for misspelt names."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    del environment.filters["random"], environment.globals["lipsum"]
    return environment
