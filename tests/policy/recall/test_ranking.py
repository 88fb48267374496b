"""Which words of a query count, and scores by word."""

from memserve.policy.recall.ranking import WordStatistics, query_terms, query_words, score_words
from memserve.policy.recall.words import words_of


def test_a_new_memory_with_the_rare_word_beats_old_ones_with_three_common_words() -> None:
    texts = [*(f"power key signal {number}" for number in range(32)), "the gate opens with qx7741b"]
    terms = query_terms("qx7741b power key signal")
    known = WordStatistics(10_000, 4.0, {"power": 9000, "key": 9000, "signal": 9000})
    scores = [score.bm25 for score in score_words(terms, [words_of(text) for text in texts], known)]
    assert max(scores) == scores[-1]
    assert scores[-1] > 2 * scores[0] > 0


def test_what_holds_no_word_of_the_query_has_no_score_by_word() -> None:
    [score] = score_words(query_terms("gate"), [["lunch"]], WordStatistics(1, 1.0, {}))
    assert (score.bm25, score.bm25_share, score.share, score.rarest) == (0.0, 0.0, 0.0, 0.0)
    assert score_words(query_terms("gate"), [], WordStatistics(0, 0.0, {})) == []


def test_the_longest_words_of_a_query_are_kept_and_function_words_are_not() -> None:
    assert query_words("Where is THE gate, gate of foo_barbaz?") == [
        "foobarbaz",
        "barbaz",
        "gate",
        "foo",
    ]
    assert len(query_words(" ".join(f"word{number}" for number in range(20)))) == 8
    assert query_words("where is the ?!") == []
