"""What a Dockerfile says: its stages, and the configuration of the image of each. Pure.

It knows the instructions that deploy/docker/Dockerfile uses, and refuses every other.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

_VARIABLE = re.compile(r"\$\{(\w+)\}")


class DockerfileError(Exception):
    """The Dockerfile says something that is wrong, or that is not known here."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A --mount of RUN."""

    kind: str
    """bind, cache or secret."""
    target: str
    source: str = ""
    """Of a bind: the path in the context, or in the stage `stage`."""
    stage: str = ""
    name: str = ""
    """Of a secret."""


@dataclass(frozen=True, slots=True)
class Run:
    command: str
    mounts: tuple[Mount, ...]


@dataclass(frozen=True, slots=True)
class Copy:
    sources: tuple[str, ...]
    target: str
    stage: str
    """Empty: the context."""


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What a container of the image gets, if nobody says otherwise."""

    environment: Mapping[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    user: str = "0:0"
    folder: str = "/"
    stop_signal: str = "SIGTERM"
    health: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    base: str
    """Another stage, an image, or scratch."""
    steps: tuple[Run | Copy, ...]
    arguments: Mapping[str, str]
    """What RUN finds in its environment beside the image's."""
    config: ImageConfig


def stages_of(text: str, arguments: Mapping[str, str]) -> dict[str, Stage]:
    """Every stage by its name, in the order of the file.

    arguments: `--build-arg`s.
    Raises DockerfileError.
    """
    stages: dict[str, Stage] = {}
    outer: dict[str, str] = {}
    reading: _Reading | None = None
    for name, value in _instructions(text):
        if name == "FROM":
            words = _substituted(value, outer).split()
            if len(words) != 3 or words[1].upper() != "AS":
                raise DockerfileError(f"FROM {value}: every stage needs a name")
            if reading is not None:
                stages[reading.name] = reading.stage()
            reading = _Reading(words[2], words[0], stages.get(words[0]), arguments)
        elif reading is None:
            if name != "ARG":
                raise DockerfileError(f"{name} before the first FROM")
            argument, _, default = value.partition("=")
            outer[argument] = arguments.get(argument, default)
        else:
            reading.read(name, value)
    if reading is None:
        raise DockerfileError("no FROM")
    return {**stages, reading.name: reading.stage()}


def needed(stages: Mapping[str, Stage], target: str) -> list[str]:
    """The stages that a target is made of, itself the last. Raises DockerfileError."""
    if target not in stages:
        raise DockerfileError(f"no stage {target}")
    stage, order = stages[target], []
    uses = [stage.base]
    for step in stage.steps:
        uses += [step.stage] if isinstance(step, Copy) else [mount.stage for mount in step.mounts]
    for name in uses:
        if name in stages:
            order += [each for each in needed(stages, name) if each not in order]
    return [*order, target]


class _Reading:
    """A stage that is being read."""

    def __init__(self, name: str, base: str, stage: Stage | None, given: Mapping[str, str]) -> None:
        self.name, self._base, self._given = name, base, given
        self._config = stage.config if stage else ImageConfig()
        self._arguments = dict(stage.arguments) if stage else {}
        self._steps: list[Run | Copy] = []

    def stage(self) -> Stage:
        return Stage(self.name, self._base, tuple(self._steps), self._arguments, self._config)

    def read(self, name: str, value: str) -> None:
        if name == "RUN":
            self._steps.append(_run(value))
            return
        if name in ("CMD", "ENTRYPOINT", "HEALTHCHECK"):
            self._set(**_started(name, value))
            return
        value = _substituted(value, {**self._config.environment, **self._arguments})
        match name:
            case "ARG":
                argument, _, default = value.partition("=")
                self._arguments[argument] = self._given.get(argument, default.strip('"'))
            case "ENV":
                self._set(environment={**self._config.environment, **_pairs(value)})
            case "LABEL":
                self._set(labels={**self._config.labels, **_pairs(value)})
            case "COPY":
                self._steps.append(_copy(value))
            case "WORKDIR":
                self._set(folder=value)
            case "USER":
                self._set(user=value)
            case "STOPSIGNAL":
                self._set(stop_signal=value)
            case "EXPOSE":
                self._set(ports=(*self._config.ports, *map(int, value.split())))
            case _:
                raise DockerfileError(f"{name} is not known here")

    def _set(self, **changes: Any) -> None:
        self._config = replace(self._config, **changes)


def _instructions(text: str) -> list[tuple[str, str]]:
    """(name, the rest), with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    pairs = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise DockerfileError("an instruction without arguments")
    return [(name.upper(), value.strip()) for name, value in pairs]


def _substituted(text: str, values: Mapping[str, str]) -> str:
    """Raises DockerfileError for a variable that nothing sets."""
    missing = [name for name in _VARIABLE.findall(text) if name not in values]
    if missing:
        raise DockerfileError(f"nothing sets {missing[0]}")
    return _VARIABLE.sub(lambda found: values[found[1]], text)


def _pairs(text: str) -> dict[str, str]:
    words = shlex.split(text)
    if not all("=" in word for word in words):
        raise DockerfileError(f"{text}: write name=value")
    return dict(word.split("=", 1) for word in words)


def _exec_form(text: str, name: str) -> tuple[str, ...]:
    """A shell between would be process 1, and would not hand signals on. Raises DockerfileError."""
    try:
        words = json.loads(text)
    except ValueError:
        raise DockerfileError(f"{name} {text}: write a JSON list, so that no shell stands between") from None
    return tuple(words)


def _started(name: str, value: str) -> dict[str, tuple[str, ...]]:
    if name == "HEALTHCHECK":
        options, _, command = value.partition("CMD")
        if any(not word.startswith("--") for word in options.split()):
            raise DockerfileError(f"HEALTHCHECK {value} is not known here")
        return {"health": _exec_form(command, name)}
    words = _exec_form(value, name)
    return {"command": words} if name == "CMD" else {"entrypoint": words, "command": ()}


def _options(text: str) -> tuple[list[dict[str, str]], str]:
    """The --name=value options at the front, each as its fields, and the rest."""
    found = []
    while match := re.match(r"--(\w+)=(\S+)\s+", text):
        fields: Sequence[str] = match[2].split(",") if match[1] == "mount" else [f"{match[1]}={match[2]}"]
        found.append(dict(part.split("=", 1) for part in fields))
        text = text[match.end() :]
    return found, text


def _run(value: str) -> Run:
    options, command = _options(value)
    mounts = []
    for option in options:
        if option.get("type") not in ("bind", "cache", "secret"):
            raise DockerfileError(f"RUN {value}: this option is not known here")
        mounts.append(
            Mount(
                option["type"],
                option["target"],
                source=option.get("source", ""),
                stage=option.get("from", ""),
                name=option.get("id", ""),
            )
        )
    return Run(command, tuple(mounts))


def _copy(value: str) -> Copy:
    options, rest = _options(value)
    *sources, target = rest.split()
    return Copy(
        tuple(sources), target, {k: v for option in options for k, v in option.items()}.get("from", "")
    )
