"""The words of one tenant's live memories, in tantivy.

Every tenant has a folder of its own. A word is common or rare by the tenant's own memories, and no query can
reach another tenant's.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tantivy

from memserve.memory.texts.store import Scope

COUNTED_MAX = 20_000
"""Memories with a word are counted one by one up to so many, without those that are gone since."""
_HEAP_BYTES = 15_000_000
"""The least that tantivy takes. It is an upper bound of a writer's buffer."""
_TENANT_KEY = re.compile("[0-9a-f]{64}")


class WordIndexFailed(OSError):
    """tantivy did not do what it was asked, such as on a full disk. The message is tantivy's."""


@dataclass(frozen=True, slots=True)
class WordRow:
    """A live memory's words, and what a scope can ask of it."""

    key: str
    seq: int
    namespace: str
    kind: str
    created_s: float
    words: Sequence[str]


@dataclass(frozen=True, slots=True)
class FoundWords:
    """What words found."""

    seqs: list[int]
    """Numbers of rows, best first."""
    document_frequency: dict[str, int]


def words_folder(folder: Path, tenant_key: str) -> Path:
    """Where a tenant's words are. Raises ValueError for what is no tenant key."""
    if not _TENANT_KEY.fullmatch(tenant_key):
        raise ValueError("a tenant key is 64 hex digits")
    return folder / "words" / tenant_key


class WordIndex:
    """A folder of tantivy. Any thread may search; one thread at a time writes.

    What is written is found once `commit` has returned. Opening creates the folder.
    Raises WordIndexFailed.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        with _failures():
            self._index = tantivy.Index(_schema(), str(folder), reuse=True)
            self._index.config_reader("manual", 0)
            self._index.reload()
        self._writer: tantivy.IndexWriter | None = None

    @property
    def rows(self) -> int:
        with _failures():
            return self._index.searcher().num_docs

    def search(self, scope: Scope, words: Sequence[str], limit: int) -> FoundWords:
        """The rows of the scope with at least one of the words, by BM25."""
        with _failures():
            searcher = self._index.searcher()
            terms = {word: self._term("words", word) for word in dict.fromkeys(words)}
            frequency = {}
            for word, term in terms.items():
                frequency[word] = searcher.doc_freq("words", word)
                if frequency[word] <= COUNTED_MAX:
                    # tantivy's own number has those that were deleted and not merged away yet.
                    frequency[word] = searcher.search(term, 1, count=True).count or 0
            if not terms:
                return FoundWords([], frequency)
            query = tantivy.Query.boolean_query(
                [
                    (tantivy.Occur.Must, _any(list(terms.values()))),
                    *((tantivy.Occur.Must, _unscored(part)) for part in self._scope(scope)),
                ]
            )
            hits = searcher.search(query, limit, count=False).hits
            seqs = searcher.fast_field_values("seq", [address for _, address in hits])
        return FoundWords([int(seq) for seq in seqs if seq is not None], frequency)

    def replace(self, removed: Iterable[str], added: Iterable[WordRow]) -> None:
        """Take keys out, and rows in. They are found after the next `commit`."""
        with self._writing() as writer:
            for key in removed:
                writer.delete_documents_by_term("key", key)
            for row in added:
                document = tantivy.Document()
                document.add_text("key", row.key)
                document.add_integer("seq", row.seq)
                document.add_text("namespace", row.namespace)
                document.add_text("kind", row.kind)
                document.add_float("created_s", row.created_s)
                document.add_text("words", " ".join(row.words))
                writer.add_document(document)

    def commit(self) -> None:
        """Bring what was written to disk, and into every later search."""
        with self._writing() as writer:
            writer.commit()
            self._index.reload()

    def release(self) -> None:
        """Let go of the writer and its buffers. The next write takes another."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(WordIndexFailed), _failures():
                writer.wait_merging_threads()

    def remove(self) -> None:
        """Delete the folder. Searches under way end on what they have open."""
        self.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[tantivy.IndexWriter]:
        try:
            with _failures():
                if self._writer is None:
                    self._writer = self._index.writer(_HEAP_BYTES, 1)
                yield self._writer
        except BaseException:
            self._writer = None  # releases tantivy's lock
            raise

    def _scope(self, scope: Scope) -> list[tantivy.Query]:
        parts = [_any([self._term("namespace", name) for name in scope.namespaces])]
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
        return parts

    def _term(self, field: str, value: str) -> tantivy.Query:
        option = "freq" if field == "words" else "basic"
        return tantivy.Query.term_query(self._index.schema, field, value, index_option=option)


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    for field in ("key", "namespace", "kind"):
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


def _unscored(query: tantivy.Query) -> tantivy.Query:
    return tantivy.Query.const_score_query(query, 0.0)


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
