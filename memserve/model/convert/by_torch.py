"""Makes a model directory of a GGUF file: `python -m memserve.model.convert.by_torch FILE TARGET DTYPE`.

transformers knows which tensor of GGUF is which of a family's, what llama.cpp turned around in it, and what
its tokenizer becomes. This process asks it, and ends: memserve itself needs no torch for a conversion.

One line of JSON on standard output for each step: `step` and its name, `tensors` and `of`, `error` and its
text, or `done`.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from memserve.errors import StartupError
from memserve.model.architectures import check_architecture
from memserve.model.convert.gguf import GgufFile, read_gguf

SAY_EVERY_S = 0.2
# Of one file of weights. A model with more has several, and an index.
SHARD = "4GB"
# The weights over the vocabulary, where they are not those of the embedding.
OUTPUT = "output.weight"
Say = Callable[[dict[str, Any]], None]


def convert(file: GgufFile, target: Path, dtype: str, say: Say) -> None:
    """Write the model directory.

    Raises StartupError for a model that memserve does not serve and for a file that is not what its header
    says, and whatever transformers raises.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    say({"step": "reading the configuration"})
    place = {"gguf_file": file.path.name, "local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(file.path.parent, **place)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    check_architecture({"architectures": [type(empty).__name__]}, file.path)
    _check_described(file, empty)
    say({"step": "reading the tokenizer"})
    AutoTokenizer.from_pretrained(file.path.parent, **place).save_pretrained(target)
    say({"step": "reading the tensors"})
    with _counted_tensors(len(file.tensors), say):
        model, loading = AutoModelForCausalLM.from_pretrained(
            file.path.parent,
            config=config,
            dtype=getattr(torch, dtype),
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            **place,
        )
    _check_loaded(file, loading, model, empty)
    # A model that was read from GGUF is written under names of its own where experts are joined.
    empty.load_state_dict(model.state_dict(), assign=True)
    empty.generation_config = model.generation_config
    _name_stop_tokens(file, empty)
    say({"step": "writing"})
    empty.save_pretrained(target, max_shard_size=SHARD)


@contextlib.contextmanager
def _counted_tensors(of: int, say: Say) -> Iterator[None]:
    """Say how many tensors transformers has read: it calls gguf's `dequantize` for each."""
    import gguf

    dequantize = gguf.dequantize
    tensors, said_s = 0, 0.0

    def counted(*arguments: Any) -> Any:
        nonlocal tensors, said_s
        numbers = dequantize(*arguments)
        tensors += 1
        if tensors == of or time.monotonic() - said_s >= SAY_EVERY_S:
            said_s = time.monotonic()
            say({"tensors": tensors, "of": of})
        return numbers

    gguf.dequantize = counted
    try:
        yield
    finally:
        gguf.dequantize = dequantize


def _check_described(file: GgufFile, empty: Any) -> None:
    """Raises StartupError where the file has more or fewer weights than the model that its values describe.

    transformers makes up what is not there, and drops what it does not know, such as biases of a family
    without biases.
    """
    buffers = {name for name, _ in empty.named_buffers()}
    described = sum(weight.numel() for weight in empty.parameters()) + sum(
        weight.numel() for name, weight in empty.state_dict().items() if name in buffers
    )
    is_tied = empty.config.get_text_config().tie_word_embeddings
    copies = [tensor for tensor in file.tensors if is_tied and tensor.name == OUTPUT]
    has = file.elements - sum(math.prod(tensor.shape) for tensor in copies)
    if described != has:
        raise StartupError(
            f"{file.path}: its values describe a model of {described} weights, and it has {has}"
        )


def _check_loaded(file: GgufFile, loading: dict[str, Any], model: Any, empty: Any) -> None:
    """Raises StartupError where a weight of the model is not from the file, or has another shape."""
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if names := sorted(str(name) for name in loading[kind]):
            word = kind.removesuffix("_keys")
            raise StartupError(f"{file.path}: {len(names)} weights are {word}, such as {names[0][:200]}")
    shapes = {name: tuple(weight.shape) for name, weight in empty.state_dict().items()}
    for name, weight in model.state_dict().items():
        if tuple(weight.shape) != shapes.get(name):
            raise StartupError(
                f"{file.path}: {name} has the shape {list(weight.shape)}, and its values describe "
                f"{list(shapes.get(name, ()))}"
            )


def _name_stop_tokens(file: GgufFile, model: Any) -> None:
    """An answer also ends with the token that ends a turn, where GGUF names it apart."""
    turn_end = file.values.get("tokenizer.ggml.eot_token_id")
    text_end = model.generation_config.eos_token_id
    if isinstance(turn_end, int) and isinstance(text_end, int) and turn_end != text_end:
        model.generation_config.eos_token_id = [text_end, turn_end]


def main() -> None:
    # Anything else that is printed goes to standard error.
    stdout, sys.stdout = sys.stdout, sys.stderr

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=stdout, flush=True)

    file, target, dtype = sys.argv[1:]
    try:
        convert(read_gguf(Path(file)), Path(target), dtype, say)
    except StartupError as error:
        say({"error": str(error)})
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0][:500]
        say({"error": f"transformers cannot read {file}: {type(error).__name__}: {first}"})
    else:
        say({"done": True})


if __name__ == "__main__":
    main()
