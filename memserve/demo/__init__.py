"""The demo: a small, really trained Llama model, its adapters, and the seeded world of facts that they answer from.
Importing this package is cheap: `facts` needs only the standard library; `train` and `answering` import torch."""

from pathlib import Path

MODEL_DIR: Path = Path(__file__).parent / "model"
"""A Hugging Face directory: config, weights, tokenizer, chat template."""

ADAPTERS_DIR: Path = Path(__file__).parent / "adapters"
"""One PEFT directory for each adapter, with its `facts.json` beside the weights."""
