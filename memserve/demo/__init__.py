"""The demo: a small, really trained Llama model, its adapters, and the seeded world of facts that they answer
from. Importing this package is cheap, and `facts` needs only the standard library. Torch is imported by
`training`, by the commands `train`, `train_expert` and `train_careless`, and by `answering`.
"""

from pathlib import Path

_HERE = Path(__file__).parent

MODEL_DIR: Path = _HERE / "model"
"""A Hugging Face directory: config, weights, tokenizer, chat template."""

ADAPTERS_DIR: Path = _HERE / "adapters"
"""One PEFT directory for each adapter, with its `facts.json` beside the weights."""

EXPERTS_DIR: Path = _HERE / "experts"
"""One directory for each logit expert, with its `facts.json` beside the weights, as of an adapter."""

CARELESS_DIR: Path = _HERE / "careless"
"""An adapter that the gate refuses: `train_careless` trains it on the harbour's facts alone."""


def demo_modules() -> list[Path]:
    """The directories of every module of the demo."""
    return sorted(
        file.parent
        for name in ("adapters/*/adapter_config.json", "experts/*/expert_config.json")
        for file in _HERE.glob(name)
    )
