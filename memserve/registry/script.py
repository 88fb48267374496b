"""A Lua script that a store runs in the registry Redis."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError


@dataclass(frozen=True, slots=True)
class Script:
    """Sent by its digest. The text goes along only where the server does not know it, as after a restart."""

    text: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha1(self.text.encode()).hexdigest())

    @staticmethod
    def of(package: str, *names: str) -> Script:
        """The files `<name>.lua` of a package, one behind the other."""
        texts = (files(package).joinpath(f"{name}.lua").read_text(encoding="utf-8") for name in names)
        return Script("".join(texts))

    async def run(self, client: Any, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """client: of `registry_client`. Belongs inside `answering()`."""
        try:
            return await client.evalsha(self.digest, len(keys), *keys, *arguments)
        except NoScriptError:
            return await client.eval(self.text, len(keys), *keys, *arguments)
