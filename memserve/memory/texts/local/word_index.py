"""One index of tantivy with words of live memories. Every word and every scope has its tenant in its term."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tantivy

from memserve.memory.texts.store import Scope

COUNTED_MAX = 20_000
"""Memories with a word are counted one by one up to so many, without those that are gone since."""
_HEAP_BYTES = 15_000_000
"""The least that tantivy takes. It is an upper bound of a writer's buffer."""
_TENANT_CHARS = 32
"""Of the tenant's key before each word: 128 bits."""


class WordIndexFailed(OSError):
    """tantivy did not do what it was asked, such as on a full disk. The message is tantivy's."""


@dataclass(frozen=True, slots=True)
class WordRow:
    """A live memory's words, and what a scope can ask of it."""

    key: str
    seq: int
    tenant_key: str
    namespace: str
    kind: str
    created_s: float
    words: Sequence[str]


class WordIndex:
    """tantivy in a folder, or in memory. Any thread may search; one thread at a time writes.

    What is written is found once `commit` has returned. Opening creates the folder.
    Raises WordIndexFailed.
    """

    def __init__(self, folder: Path | None) -> None:
        """folder: None for memory."""
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _failures():
            self._index = tantivy.Index(_schema(), None if folder is None else str(folder), reuse=True)
            self._index.config_reader("manual", 0)
            self._index.reload()
        self._writer: tantivy.IndexWriter | None = None

    @property
    def rows(self) -> int:
        with _failures():
            return self._index.searcher().num_docs

    def frequency(self, tenant_key: str, words: Iterable[str]) -> dict[str, int]:
        """How many of the tenant's memories here have each word."""
        with _failures():
            searcher = self._index.searcher()
            counts = {}
            for word in words:
                counts[word] = searcher.doc_freq("words", _word(tenant_key, word))
                if 0 < counts[word] <= COUNTED_MAX:
                    # tantivy's own number has those that were deleted and not merged away yet.
                    result: Any = searcher.search(self._word_query(tenant_key, word), 1, count=True)
                    counts[word] = int(result.count)
            return counts

    def search(self, scope: Scope, weights: Mapping[str, float], limit: int) -> list[tuple[float, int]]:
        """Scores and numbers of rows of the scope with at least one of the words, best first.

        weights: of the words, by the tenant's memories. tantivy's own are by those of all tenants here.
        """
        with _failures():
            searcher = self._index.searcher()
            query = self._query(searcher, scope, weights)
            hits = searcher.search(query, limit, count=False).hits
            seqs = searcher.fast_field_values("seq", [address for _, address in hits])
        return [
            (float(score), int(seq)) for (score, _), seq in zip(hits, seqs, strict=True) if seq is not None
        ]

    def replace(self, removed: Iterable[str], added: Iterable[WordRow]) -> None:
        """Take keys out, and rows in. They are found after the next `commit`."""
        with self._writing() as writer:
            for key in removed:
                writer.delete_documents_by_term("key", key)
            for row in added:
                document = tantivy.Document()
                document.add_text("key", row.key)
                document.add_integer("seq", row.seq)
                document.add_text("scope", _scope_term(row.tenant_key, row.namespace))
                document.add_text("kind", row.kind)
                document.add_float("created_s", row.created_s)
                document.add_text("words", " ".join(_word(row.tenant_key, word) for word in row.words))
                writer.add_document(document)

    def commit(self) -> None:
        """Bring what was written into every later search, and to disk where the index has a folder."""
        with self._writing() as writer:
            writer.commit()
            self._index.reload()

    def release(self) -> None:
        """Finish merging, and let go of the writer with its buffers. The next write takes another."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(WordIndexFailed), _failures():
                writer.wait_merging_threads()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[tantivy.IndexWriter]:
        try:
            with _failures():
                if self._writer is None:
                    self._writer = self._index.writer(_HEAP_BYTES, 1)
                yield self._writer
        except BaseException:
            self._writer = None  # releases tantivy's lock, and drops what was not committed
            raise

    def _query(self, searcher: tantivy.Searcher, scope: Scope, weights: Mapping[str, float]) -> tantivy.Query:
        rows = searcher.num_docs
        words = []
        for word, weight in weights.items():
            own = inverse_frequency(rows, searcher.doc_freq("words", _word(scope.tenant_key, word)))
            query = self._word_query(scope.tenant_key, word)
            words.append(tantivy.Query.boost_query(query, weight / own))
        parts = [
            _any([self._term("scope", _scope_term(scope.tenant_key, name)) for name in scope.namespaces])
        ]
        if scope.kinds is not None:
            parts.append(_any([self._term("kind", str(kind)) for kind in sorted(scope.kinds)]))
        if scope.created_from_s is not None or scope.created_until_s is not None:
            parts.append(
                tantivy.Query.range_query(
                    self._index.schema,
                    "created_s",
                    tantivy.FieldType.Float,
                    scope.created_from_s,
                    scope.created_until_s,
                    include_lower=True,
                    include_upper=scope.created_until_s is None,
                )
            )
        # What must match and gives no score comes beside what gives the scores.
        unscored = [(tantivy.Occur.Must, tantivy.Query.const_score_query(part, 0.0)) for part in parts]
        return tantivy.Query.boolean_query([(tantivy.Occur.Must, _any(words)), *unscored])

    def _word_query(self, tenant_key: str, word: str) -> tantivy.Query:
        return tantivy.Query.term_query(
            self._index.schema, "words", _word(tenant_key, word), index_option="freq"
        )

    def _term(self, field: str, value: str) -> tantivy.Query:
        return tantivy.Query.term_query(self._index.schema, field, value, index_option="basic")


def inverse_frequency(rows: int, holders: int) -> float:
    """A word's weight: above 0, larger for a rarer word. As BM25 has it in Lucene and tantivy."""
    holders = min(holders, rows)
    return math.log(1 + (rows - holders + 0.5) / (holders + 0.5))


def _word(tenant_key: str, word: str) -> str:
    return f"{tenant_key[:_TENANT_CHARS]}:{word}"


def _scope_term(tenant_key: str, namespace: str) -> str:
    return f"{tenant_key}/{namespace}"


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    for field in ("key", "scope", "kind"):
        builder.add_text_field(field, tokenizer_name="raw", index_option="basic")
    builder.add_integer_field("seq", fast=True)
    builder.add_float_field("created_s", fast=True)
    # The words come joined with blanks, as `words_of` spells them. A word of any length is kept.
    builder.add_text_field("words", tokenizer_name="whitespace", index_option="freq")
    return builder.build()


def _any(queries: Sequence[tantivy.Query]) -> tantivy.Query:
    if not queries:
        return tantivy.Query.empty_query()
    return tantivy.Query.boolean_query([(tantivy.Occur.Should, query) for query in queries])


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    # tantivy raises ValueError for nearly everything. Its panics are no Exceptions.
    try:
        yield
    except WordIndexFailed:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise WordIndexFailed(f"the index of words: {error}") from error
        raise
