"""Ranks of memories.

Which words of a query count, and BM25 over the memories that a search found.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from memserve.domain import Memory
from memserve.policy.recall.terms import FormWeight, Term
from memserve.policy.recall.words import terms_of, words_of

# Function words are not indexed. Rank fusion would count a memory that "where is the" finds as much as a
# memory that its code word finds. A word of another language is left out of the list when it means something
# in English: "die", "war", "den", "mit", "son", "pour".
# fmt: off
STOP_WORDS = [
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "can", "could", "did", "do", "does", "for",
    "from", "had", "has", "have", "how", "i", "if", "in", "into", "is", "it", "its", "me", "my", "no",
    "not", "of", "on", "or", "our", "shall", "should", "so", "such", "than", "that", "the", "their",
    "them", "then", "there", "these", "they", "this", "those", "to", "was", "we", "were", "what",
    "when", "where", "which", "who", "whom", "whose", "why", "will", "with", "would", "you", "your",
    "der", "das", "dem", "ein", "eine", "einen", "einer", "eines", "und", "ist", "sind", "wo", "wer", "wie",
    "wann", "welche", "welcher", "welches", "von", "zum", "zur", "im",
    "le", "la", "les", "un", "une", "du", "est", "et", "où", "qui", "que", "quel", "quelle", "dans",
    "el", "los", "las", "una", "y", "es", "en", "del", "cuál", "dónde", "cuándo", "quién", "qué",
]
# fmt: on

TERMS_MAX = 48
"""So many different terms of a query count."""
_QUERY_WORDS_MAX = 8
_INDEX_WORDS_MAX = 96
_BM25_K1 = 1.2
_BM25_B = 0.75


@dataclass(frozen=True, slots=True)
class WordStatistics:
    """Of all memories that a search looked through, as its index counts them."""

    rows: int
    mean_length: float
    """Words of a memory, as `words_of` counts them."""
    document_frequency: Mapping[str, int]
    """How many memories have the word. A word that is not in it is counted among the candidates alone."""


@dataclass(frozen=True, slots=True)
class WordScore:
    """What a memory has of a query's terms."""

    bm25: float
    bm25_share: float
    """Of the BM25 score of a text of mean length that has every term once, 0 to 2.2."""
    share: float
    """Of the query's terms, each by its weight and rarity, 0 to 1."""
    rarest: float
    """The FormWeight by which the memory has the query's rarest term. 0: it does not have it."""
    codes: bool | None
    """Whether it has every code of the query. None: the query has none."""
    matched: frozenset[str]
    """The terms that the memory has, each by its first form. A part of a compound is not enough."""


def query_terms(query: str) -> list[Term]:
    """The different terms of a query without function words, at most TERMS_MAX.

    When there are more, those of the greatest weight are kept, and of them the longest.
    """
    terms: dict[str, Term] = {}
    for term in terms_of(query):
        if term.words[0] not in STOP_WORDS:
            known = terms.setdefault(term.words[0], term)
            if known.weight < term.weight:
                terms[term.words[0]] = term
    kept = sorted(terms.values(), key=lambda term: (-term.weight, -len(term.words[0])))[:TERMS_MAX]
    names = {term.words[0] for term in kept}
    return [term for name, term in terms.items() if name in names]


def index_words(terms: Sequence[Term], *, most: int = _INDEX_WORDS_MAX) -> list[str]:
    """The words to ask an index for, any of which may be in a memory: of every term its forms, best first.

    Parts of compounds come last, because an index cannot weigh them.
    """
    weighed: dict[str, float] = {}
    for term in terms:
        for word, weight in term.forms:
            weighed[word] = max(weighed.get(word, 0.0), weight * term.weight)
    return sorted(weighed, key=lambda word: -weighed[word])[:most]


def query_words(query: str) -> list[str]:
    """The 8 longest different words of a query, in lower case and without function words.

    The longest words are mostly the rarest.
    """
    words = {term.words[0] for term in query_terms(query)}
    return sorted(words, key=lambda word: (-len(word), word))[:_QUERY_WORDS_MAX]


def score_words(
    terms: Sequence[Term], texts: Sequence[Sequence[str]], statistics: WordStatistics
) -> list[WordScore]:
    """Score texts by BM25 over terms: of a term's forms, the best that a text has counts.

    texts: [n] the words of each, as `words_of` gives them.
    Returns [n] scores.
    Source: Robertson and Zaragoza 2009 (BM25).
    """
    asked = {word for term in terms for word in term.words}
    counts = [Counter(word for word in words if word in asked) for words in texts]
    held = Counter(word for count in counts for word in count)
    rows = max(statistics.rows, len(texts), 1)

    def holders(word: str) -> int:
        return min(rows, max(statistics.document_frequency.get(word, 0), held[word]))

    weighed = [_weighed(term, holders, rows) for term in terms]
    mean_length = statistics.mean_length if statistics.mean_length > 0 else 1.0
    return [
        _word_score(weighed, count, len(words) / mean_length)
        for words, count in zip(texts, counts, strict=True)
    ]


def memory_words(memory: Memory) -> list[str]:
    """The words that a memory is found by: of its headings, its text and its keywords."""
    return words_of("\n".join((memory.place.title, *memory.place.headings, memory.text, *memory.keywords)))


@dataclass(frozen=True, slots=True)
class _WeighedTerm:
    name: str
    idf: float
    """Times the term's weight."""
    forms: tuple[tuple[str, float, float], ...]
    """Word, FormWeight, and the word's own rarity times the term's weight."""
    is_code: bool


def _weighed(term: Term, holders: Callable[[str], int], rows: int) -> _WeighedTerm:
    most = max((holders(word) for word, weight in term.forms if weight >= FormWeight.STEM), default=0)

    def idf(holders_of_word: int) -> float:
        return term.weight * math.log(1 + (rows - holders_of_word + 0.5) / (holders_of_word + 0.5))

    forms = tuple((word, weight, idf(max(most, holders(word)))) for word, weight in term.forms)
    return _WeighedTerm(term.words[0], idf(most), forms, term.is_code)


def _word_score(terms: Sequence[_WeighedTerm], count: Mapping[str, int], length: float) -> WordScore:
    """length: of the text, over the mean."""
    norm = _BM25_K1 * (1 - _BM25_B + _BM25_B * length)
    bm25 = found = 0.0
    best_by_term: dict[str, float] = {}
    for term in terms:
        best, share, weight_found = 0.0, 0.0, 0.0
        for word, weight, idf in term.forms:
            if frequency := count.get(word, 0):
                best = max(best, weight * idf * frequency * (_BM25_K1 + 1) / (frequency + norm))
                share, weight_found = max(share, weight * idf), max(weight_found, weight)
        bm25 += best
        found += share
        if weight_found:
            best_by_term[term.name] = weight_found
    whole = sum(term.idf for term in terms)
    rarest = max(terms, key=lambda term: term.idf, default=None)
    codes = [term.name in best_by_term for term in terms if term.is_code]
    return WordScore(
        bm25=bm25,
        bm25_share=bm25 / whole if whole else 0.0,
        share=found / whole if whole else 0.0,
        rarest=best_by_term.get(rarest.name, 0.0) if rarest else 0.0,
        codes=all(codes) if codes else None,
        matched=frozenset(name for name, weight in best_by_term.items() if weight >= FormWeight.STEM),
    )
