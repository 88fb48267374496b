"""List the packages of this image, Python's and Debian's, with their licences: CycloneDX 1.5 in JSON.

Run by `install.sh list` with the image's own Python. It needs nothing else.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

OSI = "License :: OSI Approved :: "
# A longer text in the field is the licence itself.
NAME_MAX_CHARS = 100


def licence_of(package: importlib.metadata.Distribution) -> dict[str, Any] | None:
    """As CycloneDX says it: an expression, a name, or else the text. None where the package says nothing."""
    metadata: Any = package.metadata
    if expression := metadata.get("License-Expression"):
        return {"expression": expression}
    field = (metadata.get("License") or "").strip()
    if field and field != "UNKNOWN" and "\n" not in field and len(field) <= NAME_MAX_CHARS:
        return {"license": {"name": field}}
    named = [line.removeprefix(OSI) for line in metadata.get_all("Classifier", []) if line.startswith(OSI)]
    if named:
        return {"license": {"name": ", ".join(named)}}
    text = field or text_of(package, metadata.get_all("License-File", []))
    first = text.strip().splitlines()[0][:NAME_MAX_CHARS] if text.strip() else ""
    return {"license": {"name": first, "text": {"content": text}}} if first else None


def text_of(package: importlib.metadata.Distribution, names: list[str]) -> str:
    """Of a package's licence files. They are in its .dist-info, since 2023 in a folder there."""
    texts = [package.read_text(place) for name in names for place in (name, f"licenses/{name}")]
    return "\n".join(text for text in texts if text)


def python_packages() -> Iterator[dict[str, Any]]:
    for package in importlib.metadata.distributions():
        name, licence = package.metadata["Name"], licence_of(package)
        yield {
            "type": "library",
            "name": name,
            "version": package.version,
            "purl": f"pkg:pypi/{name.lower().replace('_', '-')}@{quote(package.version)}",
            **({"licenses": [licence]} if licence else {}),
        }


def debian_packages() -> Iterator[dict[str, Any]]:
    """Their licences are in /usr/share/doc/<package>/copyright."""
    if shutil.which("dpkg-query") is None:
        return
    shown = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${Version} ${Architecture}\\n"],
        check=True,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ).stdout
    for line in shown.splitlines():
        name, version, architecture = line.split()
        yield {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:deb/debian/{name}@{quote(version)}?arch={architecture}",
        }


def bill() -> dict[str, Any]:
    components = [*python_packages(), *debian_packages()]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "name": "memserve",
                "version": importlib.metadata.version("memserve"),
            }
        },
        "components": sorted(components, key=lambda component: component["purl"]),
    }


if __name__ == "__main__":
    json.dump(bill(), sys.stdout, indent=1)
    print()
