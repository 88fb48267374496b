"""Stands in for `memserve.model.convert.by_torch`: it writes the demo model, in the manner of its first
argument.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

from memserve.demo import MODEL_DIR


def main() -> None:
    manner, _, folder, _ = sys.argv[1:]
    target = Path(folder)
    print("a library greets you", flush=True)
    print(json.dumps({"tensors": 1, "of": 2}), flush=True)
    shutil.copy(MODEL_DIR / "config.json", target)
    if manner == "refuses":
        print(json.dumps({"error": "the header lies"}), flush=True)
        return
    if manner == "dies":
        os._exit(7)
    if manner == "stalls":
        time.sleep(60)
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json", "model.safetensors"):
        if not (manner == "without template" and name == "chat_template.jinja"):
            shutil.copy(MODEL_DIR / name, target)
    if manner == "cuts off":
        with (target / "model.safetensors").open("r+b") as weights:
            weights.truncate(1000)
    print(json.dumps({"done": True}), flush=True)


main()
