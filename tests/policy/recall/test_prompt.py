"""How passages and a conversation become a prompt, so that equal beginnings stay equal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from memserve.domain import Memory, Message, Role, ScoredMemory, TemplateRules
from memserve.policy.recall.prompt import Arranged, arrange, arrange_raw, order_passages, passage_lines

QUESTION = Message(Role.USER, "What is the code?")
ANSWER = Message(Role.ASSISTANT, "It is 4071.")
SYSTEM = Message(Role.SYSTEM, "Be brief.")
ANY = TemplateRules()
NO_SYSTEM, NO_REPEATS = TemplateRules(system=False), TemplateRules(repeats=False)
NEITHER = TemplateRules(system=False, repeats=False)


def hit(text: str, *, created_s: float = 0.0, memory_id: str = "m", score: float = 1.0) -> ScoredMemory:
    return ScoredMemory(Memory(memory_id, "notes", text, "", (), created_s), score, None, None)


passages = st.lists(
    st.builds(
        hit,
        st.text(max_size=20),
        created_s=st.integers(0, 3).map(float),
        memory_id=st.text("abc", min_size=1, max_size=3),
        score=st.floats(0, 1),
    ),
    max_size=8,
    unique_by=lambda hit: hit.memory.memory_id,
)
# What tools return is for templates that have a place for it.
TALKING = [role for role in Role if role is not Role.TOOL]
conversations = st.lists(
    st.builds(Message, st.sampled_from(TALKING), st.text(min_size=1, max_size=20)), min_size=1, max_size=5
)
rules = st.builds(TemplateRules, st.booleans(), st.booleans())


def test_passages_are_ordered_by_creation_then_by_id() -> None:
    hits = [
        hit("c", created_s=2),
        hit("b", created_s=1, memory_id="b"),
        hit("a", created_s=1, memory_id="a"),
    ]
    assert [hit.memory.text for hit in order_passages(hits)] == ["a", "b", "c"]


def test_passages_that_are_used_more_go_first_and_so_share_the_beginning() -> None:
    hits = [hit(name, created_s=number, memory_id=name) for number, name in enumerate("abcde")]
    namespace = hits[0].memory.namespace
    uses = {(namespace, "d"): 9, (namespace, "b"): 7, ("elsewhere", "a"): 50}
    assert [one.memory.memory_id for one in order_passages(hits, uses)] == ["d", "b", "a", "c", "e"]
    assert [one.memory.memory_id for one in order_passages([*hits[:2], hits[3]], uses)] == ["d", "b", "a"]


@given(passages, st.randoms())
def test_the_order_is_the_same_whatever_the_scores_and_the_order_of_finding(
    hits: list[ScoredMemory], random: object
) -> None:
    rescored = [ScoredMemory(hit.memory, 1 - hit.score, hit.dense_score, hit.bm25_score) for hit in hits]
    random.shuffle(rescored)  # type: ignore[attr-defined]
    assert [hit.memory for hit in order_passages(rescored)] == [hit.memory for hit in order_passages(hits)]


def render(system: str, lines: Sequence[str]) -> str:
    """As a template of passages does: the system text first, then the lines."""
    return "\n".join([*([system] if system else []), "Use these:", *lines])


def put_together(
    messages: Sequence[Message], passages: Sequence[ScoredMemory] = (), rules: TemplateRules = ANY
) -> list[Message]:
    return list(arrange(messages, passages, render, rules).messages)


def test_without_passages_the_conversation_is_as_it_was() -> None:
    for talk in ([SYSTEM, QUESTION], [QUESTION], [QUESTION, QUESTION], [QUESTION, SYSTEM, QUESTION]):
        assert arrange(talk, [], render, ANY) == Arranged(tuple(talk))


def test_passages_stand_behind_the_system_text() -> None:
    assert put_together([SYSTEM, QUESTION], [hit("one"), hit("two")]) == [
        Message(Role.SYSTEM, "Be brief.\nUse these:\none\ntwo"),
        QUESTION,
    ]


def test_without_a_system_message_passages_make_one() -> None:
    assert put_together([QUESTION], [hit("one")]) == [Message(Role.SYSTEM, "Use these:\none"), QUESTION]


def test_a_passage_of_many_lines_becomes_one_line_so_that_it_cannot_pose_as_another() -> None:
    assert passage_lines([hit("one\n[2] forged\r\n\tend\u2028x")]) == ["one [2] forged end x"]


def test_system_text_and_passages_stand_before_the_question_where_there_is_no_system_role() -> None:
    arranged = arrange([SYSTEM, QUESTION, ANSWER, QUESTION], [hit("one")], render, NO_SYSTEM)
    first = Message(Role.USER, f"Be brief.\nUse these:\none\n\n{QUESTION.content}")
    assert arranged == Arranged((first, ANSWER, QUESTION), system_folded=True)
    assert arrange([QUESTION], [], render, NO_SYSTEM) == Arranged((QUESTION,))


def test_system_text_in_the_middle_stands_before_the_users_next_turn() -> None:
    assert put_together([QUESTION, ANSWER, SYSTEM, QUESTION], rules=NO_SYSTEM) == [
        QUESTION,
        ANSWER,
        Message(Role.USER, f"Be brief.\n\n{QUESTION.content}"),
    ]
    assert put_together([SYSTEM, QUESTION, ANSWER, SYSTEM, QUESTION], rules=NO_REPEATS)[-1] == Message(
        Role.USER, f"Be brief.\n\n{QUESTION.content}"
    )


def test_system_text_that_no_question_follows_is_a_turn_of_the_user() -> None:
    as_user = Message(Role.USER, SYSTEM.content)
    assert put_together([SYSTEM], rules=NO_SYSTEM) == [as_user]
    assert put_together([SYSTEM, ANSWER, QUESTION], rules=NEITHER) == [as_user, ANSWER, QUESTION]


def test_neighbours_of_one_role_are_joined_where_roles_must_alternate() -> None:
    talk = [SYSTEM, QUESTION, QUESTION, ANSWER, ANSWER, ANSWER, QUESTION]
    twice = f"{QUESTION.content}\n\n{QUESTION.content}"
    assert arrange(talk, [], render, NO_REPEATS) == Arranged(
        (
            SYSTEM,
            Message(Role.USER, twice),
            Message(Role.ASSISTANT, "\n\n".join([ANSWER.content] * 3)),
            QUESTION,
        ),
        merged_turns=3,
    )
    assert put_together(talk) == talk


@given(conversations, passages, rules)
def test_a_template_gets_what_it_takes_and_nothing_is_lost(
    talk: list[Message], hits: list[ScoredMemory], rules: TemplateRules
) -> None:
    arranged = arrange(talk, hits, render, rules)
    roles = [message.role for message in arranged.messages]
    if not rules.system:
        assert Role.SYSTEM not in roles
    if not rules.repeats:
        assert Role.SYSTEM not in roles[1:]
        assert all(before is not after for before, after in pairwise(roles))
    if rules == ANY:
        assert not arranged.system_folded
    text = "\n".join(message.content for message in arranged.messages)
    place = 0
    for message in talk:
        place = text.index(message.content, place) + len(message.content)
    for line in passage_lines(hits):
        assert line in text


@given(conversations, passages.filter(bool))
def test_the_conversation_after_the_system_message_is_untouched(
    talk: list[Message], hits: list[ScoredMemory]
) -> None:
    arranged = put_together(talk, hits)
    assert arranged[0].role is Role.SYSTEM
    assert arranged[1:] == (talk[1:] if talk[0].role is Role.SYSTEM else talk)
    if talk[0].role is Role.SYSTEM:
        assert arranged[0].content.startswith(talk[0].content)


@given(conversations, conversations, passages, rules)
def test_a_longer_conversation_begins_as_the_shorter_one(
    talk: list[Message], later: list[Message], hits: list[ScoredMemory], rules: TemplateRules
) -> None:
    short, long = put_together(talk, hits, rules), put_together([*talk, *later], hits, rules)
    if rules == ANY:
        assert long[: len(short)] == short
    flat, longer = ("".join(message.content for message in each) for each in (short, long))
    assert longer.startswith(flat)


def test_a_text_to_go_on_with_stands_behind_the_passages() -> None:
    assert arrange_raw("Once", [], render) == Arranged((Message(Role.USER, "Once"),))
    (asked,) = arrange_raw("Once", [hit("one")], render).messages
    assert asked.content == "Use these:\none\n\nOnce"
