"""Asks transformers, in a process of its own: `python -m memserve.model.by_transformers tokenizer|sizes
DIRECTORY`.

Which class reads a tokenizer, what that class makes of tokenizer.json, which of six files names a token, and
what a configuration means that leaves names out or calls them otherwise, are transformers' own rules, and
they change. They are not told again here. The process is its own because transformers brings torch where that
is installed; a gateway's machine has it without.
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
    """`tokenizer`: as of tokenizer.json, with all tokens. `special_tokens`: name to text. `template`: "" for
    none.

    Raises whatever transformers raises for what it cannot read.
    """
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    template = found.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return {
        "tokenizer": found.backend_tokenizer.to_str(),
        "split_special_tokens": bool(found.split_special_tokens),
        "special_tokens": found.special_tokens_map,
        "template": template or "",
    }


def sizes(path: Path) -> dict[str, Any]:
    """What the text model of a configuration has of SIZES, by those names, defaults included. Raises as
    `tokenizer` does.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    text = config.get_text_config()
    found = {name: getattr(text, name, None) for name in SIZES}
    dtype = getattr(text, "dtype", None) or getattr(config, "dtype", None)
    return {
        **{name: value for name, value in found.items() if value is not None},
        "dtype": str(dtype or "").removeprefix("torch."),
    }


def asked(what: str, path: Path, digest: str) -> dict[str, Any]:
    """What one of the functions above finds, from a process of its own; a few seconds.

    digest: of the files. Files that were asked about are not asked about again. Raises StartupError.
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
        found: dict[str, Any] = json.loads(ended.stdout)
    except subprocess.TimeoutExpired:
        found = {"error": f"it takes more than {TIMEOUT_S:.0f} s"}
    except ValueError:
        found = {"error": f"its process ended with {ended.returncode}"}
    if "error" in found:
        raise StartupError(f"transformers cannot read the {what} of {path}: {found['error']}")
    return found


def main() -> None:
    """Prints one line: what was found, as JSON, or `error` with what transformers says."""
    # Whatever else is printed goes elsewhere.
    answer, sys.stdout = sys.stdout, sys.stderr
    try:
        found = {"tokenizer": tokenizer, "sizes": sizes}[sys.argv[1]](Path(sys.argv[2]))
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"}
    answer.write(json.dumps(found))


if __name__ == "__main__":
    main()
