"""Asks transformers, in a process of its own: `python -m memserve.model.by_transformers tokenizer|sizes
DIRECTORY`.

transformers has rules of its own, and they change: which class reads a tokenizer, how that class changes
tokenizer.json, which of six files names a token, and what a configuration means that leaves names out or has
other names. They are not written again here. transformers imports torch where torch is installed. In a
process of its own that costs memserve nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from memserve.errors import StartupError

TIMEOUT_S = 120.0
ANSWERS_MAX = 8
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "kv_lora_rank",
)


_answers: dict[tuple[str, str], dict[str, Any]] = {}


def tokenizer(path: Path) -> dict[str, Any]:
    """The tokenizer as transformers reads it.

    Returns `tokenizer` (in the form of tokenizer.json, with all tokens), `split_special_tokens`,
    `special_tokens` (text by name) and `template` ("" for none). Raises whatever transformers raises for
    files that it cannot read.
    """
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    template = read.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return {
        "tokenizer": read.backend_tokenizer.to_str(),
        "split_special_tokens": bool(read.split_special_tokens),
        "special_tokens": read.special_tokens_map,
        "template": template or "",
    }


def sizes(path: Path) -> dict[str, Any]:
    """The SIZES that the text model of a configuration has, by name, defaults included. Also its dtype.

    Raises as `tokenizer` does.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    text = config.get_text_config()
    values = {name: getattr(text, name, None) for name in SIZES}
    dtype = getattr(text, "dtype", None) or getattr(config, "dtype", None)
    return {
        **{name: value for name, value in values.items() if value is not None},
        "dtype": str(dtype or "").removeprefix("torch."),
    }


def asked(what: str, path: Path, digest: str) -> dict[str, Any]:
    """Call one of the functions above in a process of its own. Takes a few seconds.

    digest: of the files. The same files are not asked about again.
    Raises StartupError.
    """
    if (what, digest) not in _answers:
        while len(_answers) >= ANSWERS_MAX:
            del _answers[next(iter(_answers))]
        _answers[what, digest] = _ask(what, path)
    return _answers[what, digest]


def _ask(what: str, path: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "memserve.model.by_transformers", what, str(path)]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    try:
        ended = subprocess.run(command, capture_output=True, env=environment, timeout=TIMEOUT_S, check=False)
        answer: dict[str, Any] = json.loads(ended.stdout)
    except subprocess.TimeoutExpired:
        answer = {"error": f"it takes more than {TIMEOUT_S:.0f} s"}
    except ValueError:
        answer = {"error": f"its process ended with {ended.returncode}"}
    if "error" in answer:
        raise StartupError(f"transformers cannot read the {what} of {path}: {answer['error']}")
    return answer


def main() -> None:
    """Prints one line of JSON: the answer, or `error` with the message of transformers."""
    # Anything else that is printed goes to standard error.
    stdout, sys.stdout = sys.stdout, sys.stderr
    try:
        answer = {"tokenizer": tokenizer, "sizes": sizes}[sys.argv[1]](Path(sys.argv[2]))
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"}
    stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
