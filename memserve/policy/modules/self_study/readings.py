"""What a sentence states, without a language model: of what, which property, which value.

The rules know how plain English statements are made. They read these forms, with or without a beginning such
as "Note:" or "As of today":

1. attribute: "The founder of the Velmora Institute is Ida Kern.", "Velmora's founder is Ida Kern.", "Ida Kern
   is the founder of Velmora.", "For Velmora, the founder is Ida Kern.", "Velmora has the founder Ida Kern.",
   "Velmora: founder Ida Kern."
2. relation: "The bakery is led by Ines Okafor.", "The mill burned down in 1931." The value is what stands
   behind the last preposition or the verb.
3. cloze: any other statement of one sentence. Its last words are the value.

A sentence of a pronoun ("It opened in 1931.") states nothing that can be asked for without its neighbours.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum

MAX_SENTENCE_CHARS = 400
MAX_VALUE_WORDS = 8
MAX_VALUE_BYTES = 512
"""A probe takes no longer answer. A script without spaces has long words."""
MAX_ATTRIBUTE_WORDS = 5
MAX_READINGS = 64
"""Of one memory: a passage of a document can hold a page of sentences."""


class Form(StrEnum):
    """How a sentence states its fact."""

    ATTRIBUTE = "attribute"
    RELATION = "relation"
    CLOZE = "cloze"


@dataclass(frozen=True, slots=True)
class Reading:
    """A fact that a sentence states."""

    form: Form
    subject: str
    """As it stands inside a sentence: "the Velmora Institute"."""
    attribute: str
    """Of a relation: the verb with its preposition, "is led by". Of a cloze: the sentence up to the value."""
    value: str
    sentence: str
    """The sentence itself, with its full stop."""
    copula: str = "is"
    """Of an attribute: what was is not taught as what is."""

    @property
    def answer(self) -> str:
        """A sentence that answers a question for the value."""
        if self.form is Form.ATTRIBUTE:
            return f"The {self.attribute} of {self.subject} {self.copula} {self.value}."
        return self.sentence

    @property
    def key(self) -> tuple[str, str]:
        """Two readings with one key contradict each other, or are the same."""
        return (_plain(self.subject), _plain(self.attribute))

    @property
    def agent_key(self) -> tuple[str, str] | None:
        """As `key`, alike for "was founded by" and "the founder of". None: it names nobody who did it."""
        if self.form is Form.RELATION:
            found = _DONE_BY.match(self.attribute)
        else:
            found = _DOER.match(self.attribute) if self.form is Form.ATTRIBUTE else None
        return (_plain(self.subject), f"by whom: {found[1].casefold()}") if found else None

    @property
    def said(self) -> str:
        """The value, alike in its spellings: "1,000 m" and "1000m", a name and the same in quotes."""
        value = _THOUSANDS.sub("", unicodedata.normalize("NFKC", self.value)).strip(_QUOTES)
        return _BEFORE_UNIT.sub("", _ANY_ARTICLE.sub("", value)).casefold() or value


_SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)]))\s+")
_OPENING = "\"'(“‘«"
_TITLE = re.compile(
    r"(?:^|[\s(\"'“‘«])"
    r"(?:dr|mr|mrs|ms|prof|st|rev|gen|capt|col|lt|sgt|hon|mt|ft|vs|approx|ca|e\.g|i\.e)\.$",
    re.IGNORECASE,
)
_NUMBER_MARK = re.compile(r"(?:^|[\s(])(?:no|nr|vol|fig|p|pp|art|sec|ch)\.$", re.I)
_INITIALS = re.compile(r"(?:^|[\s(.-])[^\W\d_]\.$")
_SENTENCE_WORDS = re.compile(
    r"(?:the|a|an|it|its|he|she|they|we|this|that|these|those|there|in|on|at|for|from|by|to|note|nobody|no|"
    r"if|when|after|before|since|all|both|each|every|some)\b",
    re.IGNORECASE,
)
"""What a sentence begins with, and a name does not."""
_DONE_BY = re.compile(r"^(?:is|was) (\w{3,})ed by$", re.IGNORECASE)
_DOER = re.compile(r"^(\w{3,})(?:er|or)$", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_BEFORE_UNIT = re.compile(r"(?<=\d)\s+(?=[^\W\d])")
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")
_LIST_MARK = re.compile(r"^\s*(?:[-*•+]|\d{1,3}[.)])\s+")
_SENTENCE_MARKS = (".", "!", "?", ":")
_BEGINNINGS = re.compile(
    r"^(?:note(?: that)?[:,]?\s+|records? (?:say|says|show|shows) that\s+|as of [\w ]{2,20}?,?\s+(?=the\s)|"
    r"(?:it is (?:known|said|recorded) that|remember(?: that)?[:,]?|today,?|now,?|please note(?: that)?[:,]?|"
    r"(?:warning|reminder|attention|fact|fyi|info|update|correction|hint|tip|important)[:,])"
    r"\s+)",
    re.IGNORECASE,
)
_PRONOUN = re.compile(
    r"^(?:it|he|she|they|this|that|these|those|there|here|its|his|her|their|we|i|you|our|my|your)\b",
    re.IGNORECASE,
)
_COPULA = r"(?:is|are|was|were)(?: called| named)?"
_TOLD = r"(?P<c>is|are|was|were)(?: called| named)?"
_WORD = r"[^\s,:;]+"
_ATTRIBUTE_FORMS = (
    re.compile(rf"^the (?P<a>{_WORD}(?: {_WORD}){{0,4}}?) (?:of|for) (?P<e>.+?) {_TOLD} (?P<v>.+)$", re.I),
    re.compile(rf"^for (?P<e>.+?), the (?P<a>{_WORD}(?: {_WORD}){{0,4}}?) {_TOLD} (?P<v>.+)$", re.I),
    re.compile(rf"^(?P<e>.+?)(?:'s|’s) (?P<a>[a-z]\S*(?: [a-z]\S*){{0,4}}?) {_TOLD} (?P<v>.+)$"),
    re.compile(rf"^(?P<v>[^a-z].*?) {_TOLD} the (?P<a>[a-z]\S*(?: [a-z]\S*){{0,4}}?) (?:of|for) (?P<e>.+)$"),
    re.compile(rf"^(?P<e>[^:]+): the (?P<a>{_WORD}(?: {_WORD}){{0,4}}?) {_TOLD} (?P<v>.+)$", re.I),
    re.compile(r"^(?P<e>[^:]+): (?P<a>[a-z]\S*) (?P<v>.+)$"),
    re.compile(r"^(?P<e>.+?) (?P<c>has|had) (?:the|an?) (?P<a>[a-z]\S*) (?P<v>[^a-z].*|\S+)$"),
)
_LABELLED = _ATTRIBUTE_FORMS[4:6]
"""Those with a colon, behind which another form may stand."""
_PREPOSITION = (
    r"(?:by|in|at|on|from|to|with|near|under|above|behind|beside|into|for|after|before|until|since)"
)
_RELATION_FORMS = (
    re.compile(
        rf"^(?P<e>.+?) (?P<a>{_COPULA} (?:\S+ ){{1,3}}?{_PREPOSITION}) "
        rf"(?P<v>(?!.*\b{_PREPOSITION}\b).+)$"
    ),
    re.compile(
        rf"^(?P<e>(?:the |an? )?(?:\S+ ){{0,4}}?\S+) (?P<a>[a-z]+(?:ed|s|t|ew|an|ound|ought|old|ade|ept|ood) "
        rf"(?:[a-z]+ )?{_PREPOSITION}) (?P<v>(?!.*\b{_PREPOSITION}\b).+)$"
    ),
)
_ARTICLE = re.compile(r"^(?:The|A|An)\b")
_ANY_ARTICLE = re.compile(r"^(?:the|a|an)\s+", re.IGNORECASE)
_VERB = re.compile(r"\b(?:is|are|was|were|has|had|have)\b")
_NEGATED = re.compile(
    r"\b(?:not|no(?!\. ?\d)|never|nobody|nothing|none|neither|nor|cannot)\b|n['’]t\b", re.IGNORECASE
)
_MORE = re.compile(
    r",\s+(?:who|which|whose|where)\s.*$|"
    r",?\s+(?:and|but|while)\s+(?:the|its|his|her|their)\s+(?:\S+\s+){1,5}?(?:is|are|was|were)\s.*$"
)
"""What a sentence says behind the value: of the value, or another fact."""
_NO_LABEL = re.compile(
    r"^(?:who|what|which|when|where|why|how|is|are|was|were|has|had|have|the|an?|nearly|all|some)$", re.I
)
_MARKS = re.compile(r"(?:\.+|!+)$")
_ARTICLES = ("the", "a", "an")
_QUOTES = "\"'“”‘’«»"
_AROUND = "\"'“”‘’«»()[]{},.;:!?*_`"


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with its mark.

    A line of its own before an empty line, without a mark at its end and without a verb, is a heading and no
    sentence. In a list, and where every line begins with a capital letter and ends without a mark, each line
    is a sentence.
    """
    paragraphs = [part for part in _PARAGRAPH_END.split(text.strip()) if part.strip()]
    parts: list[str] = []
    for place, paragraph in enumerate(paragraphs):
        lines = paragraph.strip().split("\n")
        if len(lines) == 1 and place + 1 < len(paragraphs) and _is_heading(lines[0]):
            continue
        parts += _statements(lines)
    found = [" ".join(sentence.split()) for part in parts for sentence in _split(part)]
    return [sentence for sentence in found if sentence]


def _split(text: str) -> list[str]:
    """At the marks that end a sentence: not at those of a title ("Dr."), a number ("No. 5") or initials."""
    parts: list[str] = []
    for piece in _SENTENCE_END.split(text):
        # A longer one is not read, wherever it ends.
        if parts and len(parts[-1]) <= MAX_SENTENCE_CHARS and not _begins(parts[-1], piece):
            parts[-1] = f"{parts[-1]} {piece}"
        else:
            parts.append(piece)
    return parts


def _begins(before: str, piece: str) -> bool:
    """Whether a piece behind a mark is a sentence of its own."""
    word = piece.lstrip(_OPENING)
    if not (word[:1].isupper() or word[:1].isdigit()):
        return False
    if _NUMBER_MARK.search(before) and word[0].isdigit():
        return False
    if _SENTENCE_WORDS.match(word):
        return True
    if _TITLE.search(before):
        return False
    # "Ida K. Kern is …" goes on, as "… is J. Kern." does. "The grade is A. Bo has a B." is two sentences.
    initials = _INITIALS.search(before) is not None
    return not initials or (_VERB.search(before) is not None and _VERB.search(piece) is not None)


def _is_heading(line: str) -> bool:
    marked = line.rstrip().endswith(_SENTENCE_MARKS) or _LIST_MARK.match(line) is not None
    return not marked and _VERB.search(line) is None


def _statements(lines: list[str]) -> list[str]:
    """The lines of a paragraph, joined where a sentence goes on in the next line."""
    bare = [_LIST_MARK.sub("", line).strip() for line in lines]
    if all(line[:1].isupper() and not line.endswith(_SENTENCE_MARKS) for line in bare):
        return bare
    joined: list[str] = []
    for line, text in zip(lines, bare, strict=True):
        if joined and not _LIST_MARK.match(line):
            joined[-1] = f"{joined[-1]} {text}"
        else:
            joined.append(text)
    return joined


def readings_of(text: str) -> list[Reading]:
    """What the sentences of a memory state, at most MAX_READINGS, and of each fact the first."""
    unique = {reading.key: reading for reading in reversed(all_readings_of(text))}
    return list(reversed(unique.values()))[:MAX_READINGS]


def all_readings_of(text: str) -> list[Reading]:
    """Also those that state a fact again, or otherwise.

    A cloze is read only where the memory is one sentence: in a longer text most sentences of other forms say
    nothing that is worth a question.
    """
    parts = sentences(text)
    readings = [reading for part in parts if (reading := read_sentence(part)) is not None]
    exact = [reading for reading in readings if reading.form is not Form.CLOZE]
    return exact if exact or len(parts) > 1 else readings


def read_sentence(sentence: str) -> Reading | None:
    """None: the sentence is no statement that can be read alone."""
    whole = " ".join(sentence.split())
    if len(whole) > MAX_SENTENCE_CHARS or whole.endswith("?"):
        return None
    # Of "w0rd!." only the full stop is the sentence's.
    stem = _BEGINNINGS.sub("", _MARKS.sub("", whole).rstrip())
    if not stem or _PRONOUN.match(stem) or _NEGATED.search(stem):
        return None
    stem = stem[0].upper() + stem[1:]
    for form, patterns in ((Form.ATTRIBUTE, _ATTRIBUTE_FORMS), (Form.RELATION, _RELATION_FORMS)):
        for pattern in patterns:
            if (match := pattern.match(stem)) is not None and (found := _reading(form, match, stem)):
                return found
    return _cloze(stem)


def _reading(form: Form, match: re.Match[str], stem: str) -> Reading | None:
    subject, attribute, value = (match[name].strip(" ,;:") for name in ("e", "a", "v"))
    subject, copula = _inside(subject), "is"
    value = _MORE.sub("", value)
    if form is Form.ATTRIBUTE:
        copula = {"has": "is", "had": "was"}.get(told := match.groupdict().get("c") or "is", told)
        copula = copula.lower()
        if value.startswith(("the ", "The ")) and match.re is _ATTRIBUTE_FORMS[3]:
            return None
        if match.re in _LABELLED and _NO_LABEL.match(attribute):
            return None
    if not subject or not attribute or not _is_value(value):
        return None
    if _PRONOUN.match(subject) or _VERB.search(subject):
        return None
    if len(attribute.split()) > MAX_ATTRIBUTE_WORDS or "," in subject or len(subject.split()) > 8:
        return None
    return Reading(form, subject, attribute, value, f"{stem}.", copula)


def _cloze(stem: str) -> Reading | None:
    words = stem.split()
    if len(words) < 4:
        return None
    take = 1
    while take < min(4, len(words) - 3) and (words[-take - 1][0].isupper() or words[-take - 1][0].isdigit()):
        take += 1
    value, frame = " ".join(words[-take:]), " ".join(words[:-take])
    subject = _inside(" ".join(words[: min(3, len(words) - take)]))
    return Reading(Form.CLOZE, subject, frame, value, f"{stem}.") if _is_value(value) else None


def _is_value(value: str) -> bool:
    return (
        0 < len(value.split()) <= MAX_VALUE_WORDS
        and len(value.encode()) <= MAX_VALUE_BYTES
        and any(letter.isalnum() for letter in value)
    )


def _inside(subject: str) -> str:
    """A subject as it stands within a sentence: with a small article."""
    return _ARTICLE.sub(lambda article: article[0].lower(), subject)


def _plain(text: str) -> str:
    """A name as names are compared: in any case and composition, without articles and what stands around it.

    Signs within a name stay: C, C++ and C# are three things, and a letter A is no article.
    """
    words = unicodedata.normalize("NFKC", text).split()
    bare = [
        word
        for place, word in enumerate(words)
        if len(words) == 1 or not (word in _ARTICLES or (place == 0 and word.lower() in _ARTICLES))
    ]
    parts = [part.strip(_AROUND) for word in bare for part in re.split(r"[-‐–—_/]+", word)]
    return " ".join(part for part in parts if part).casefold() or text.casefold()
