"""The images of memserve as their Dockerfile describes them, for the kubelet."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

from loadtests.cluster.kubelet.image import TREE, Image, this_tree

DOCKERFILE = TREE / "deploy/docker/Dockerfile"


@dataclass(frozen=True)
class Stage:
    """What a stage of a Dockerfile says of the containers that run it."""

    environment: dict[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    user: int = 0
    group: int = 0


def stages_of(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile by name. A stage has what the stage below it says, unless it says other."""
    stages: dict[str, Stage] = {}
    name = ""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        match word:
            case "FROM":
                base, _, name = rest.partition(" AS ")
                stages[name] = stages.get(base, Stage())
            case "ENV":
                pairs = dict(pair.split("=", 1) for pair in shlex.split(rest))
                environment = {**stages[name].environment, **pairs}
                stages[name] = replace(stages[name], environment=environment)
            case "ENTRYPOINT":
                stages[name] = replace(stages[name], entrypoint=tuple(json.loads(rest)))
            case "USER":
                user, _, group = rest.partition(":")
                stages[name] = replace(stages[name], user=int(user), group=int(group or user))
    return stages


def memserve_image(target: str, dockerfile: Path = DOCKERFILE) -> Image:
    """target: a stage of the Dockerfile. The programs are this tree's, wherever its PATH points."""
    stage = stages_of(dockerfile.read_text(encoding="utf-8"))[target]
    environment = {name: value for name, value in stage.environment.items() if name != "PATH"}
    image = this_tree(environment, user=stage.user, home=stage.environment.get("HOME", "/"))
    return replace(image, entrypoint=stage.entrypoint, group=stage.group)


def image_of(reference: str) -> Image:
    """By its reference in a manifest: memserve's own by the last part of the name, else another's."""
    name = reference.rpartition("/")[2].partition("@")[0].partition(":")[0]
    if name in ("gateway", "worker-cpu", "worker-cuda"):
        return memserve_image(name)
    return this_tree({}, user=0)
