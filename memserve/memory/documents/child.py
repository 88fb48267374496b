"""Reads one document in a process of its own: `python -m memserve.memory.documents.child`.

1. A PDF or a page of HTML may come from anybody. What a parser does with it is bounded by the kernel here:
   its memory, its processor time, and what it may write. The gateway bounds the time.
2. Standard input is `wire.question`, standard output is `wire.answer` or `wire.refusal`.
3. Nothing else is printed: what a library says may quote the document.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
import traceback
from pathlib import Path

from memserve.errors import InvalidField
from memserve.memory.documents import wire
from memserve.memory.documents.bounds import DocumentBounds

RECURSION_MAX = 3_000
OPEN_FILES_MAX = 64
# JSON spells some characters with more bytes, and each block has its headings.
WRITTEN_PER_TEXT_BYTE = 4


def main() -> None:
    output, sys.stdout = sys.stdout.buffer, sys.stderr
    upload, bounds = wire.asked(sys.stdin.buffer.readline(), sys.stdin.buffer.read())
    limit_this_process(bounds)
    # Libraries are loaded under the limits, too.
    from memserve.memory.documents.parsing import parse_document

    sys.setrecursionlimit(RECURSION_MAX)
    try:
        document = parse_document(
            upload.content, upload.media_type, bounds, file_name=upload.file_name, title=upload.title
        )
        output.writelines(wire.answer(document))
    except InvalidField as error:
        output.write(wire.refusal(error.field, error.rule))
    except MemoryError:
        rule = f"needs more than {bounds.memory_bytes} bytes of memory to be read"
        output.write(wire.refusal("document", rule))
    except RecursionError:
        output.write(wire.refusal("document", "is nested too deeply"))
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        # What it may write is full. The gateway sees that the answer is not complete.
        os._exit(1)
    except Exception as error:
        output.write(wire.failure(f"{type(error).__name__} at {_place(error)}"))
    output.flush()
    # Nothing is taken apart: a tree of a million elements would take its time.
    os._exit(0)


def _place(error: Exception) -> str:
    """The line of code that raised it. The error's own text may quote the document."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def limit_this_process(bounds: DocumentBounds) -> None:
    """No error may name what is in a document, so that no core is kept either."""
    for limit, most in (
        (resource.RLIMIT_AS, bounds.memory_bytes),
        (resource.RLIMIT_CPU, bounds.cpu_s),
        (resource.RLIMIT_FSIZE, WRITTEN_PER_TEXT_BYTE * bounds.text_bytes),
        (resource.RLIMIT_NOFILE, OPEN_FILES_MAX),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))


if __name__ == "__main__":
    main()
