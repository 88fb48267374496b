"""`memserve kv check`: whether the entries in Redis agree with each other. It asks Redis, not the gateway."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from memserve.cli.options import AsJson, print_json
from memserve.cli.terminal import out
from memserve.config import Settings, load_settings
from memserve.errors import RegistryUnavailable, StartupError


def check(
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Of the `memserve up` to check. Default: ~/.local/share/memserve."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the cache's ledger and the module store in Redis, on this machine. Safe while they are in use.

    Where Redis is comes from the settings, as for `memserve gateway`.
    Without them it is that of a running `memserve up`.
    Exit status 1 when something contradicts something else.
    """
    from memserve.kv.ledger.check import check_ledger

    settings = load_settings(data_dir=data_dir)
    ledger = check_ledger(cache_url(settings))
    module_store = asyncio.run(check_module_store(registry_url(settings)))
    if as_json:
        print_json({"ledger": ledger, "module_store": module_store})
    else:
        for name, contradictions in (("the cache's ledger", ledger), ("the module store", module_store)):
            out.print(f"{name}: {_summary(len(contradictions))}", highlight=False)
            for contradiction in contradictions:
                out.print(f"  {contradiction}", highlight=False, soft_wrap=True)
    raise typer.Exit(1 if ledger or module_store else 0)


def registry_url(settings: Settings) -> str:
    """The registry of the settings. Without one it is the private Redis that `memserve up` starts."""
    from memserve.embedded.redis_server import registry_server

    return settings.redis or registry_server(settings.data).url


def cache_url(settings: Settings) -> str:
    """The cache of the settings. Without one it is the private Redis that `memserve up` starts."""
    from memserve.embedded.redis_server import cache_server

    return settings.cache_redis or cache_server(settings.data, settings.cache_max_bytes).url


async def check_module_store(url: str) -> list[str]:
    """The contradictions in the module store. Raises StartupError when the registry does not answer."""
    from memserve.memory.modules.registry.store import ModuleStore

    store = ModuleStore(url)
    try:
        return await store.check_integrity()
    except RegistryUnavailable as error:
        raise StartupError(f"the registry does not answer: {error.__cause__}") from None
    finally:
        await store.close()


def _summary(contradictions: int) -> str:
    match contradictions:
        case 0:
            return "sound"
        case 1:
            return "1 contradiction"
    return f"{contradictions} contradictions"
