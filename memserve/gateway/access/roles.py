"""Which role each RPC needs. A higher role may call every RPC that a lower role may call."""

from __future__ import annotations

from memserve.domain import KeyRole

_READ, _ASK, _WRITE = KeyRole.READ, KeyRole.ASK, KeyRole.WRITE
# Parts of some calls need `admin` whatever this table says. They are: naming the worker of a request, and
# seeing workers' addresses, workers' process ids and the bytes of all tenants.
NEEDED: dict[str, KeyRole] = {
    "GetStatus": _READ,
    "Backup": KeyRole.ADMIN,
    "GetMemory": _READ,
    "Search": _READ,
    "ListNamespaces": _READ,
    "LookupPrefix": _READ,
    "GetUsage": _READ,
    "GetModule": _READ,
    "ListModules": _READ,
    "GetVersion": _READ,
    "ListVersions": _READ,
    "ListAliasHistory": _READ,
    "GetResidency": _READ,
    "WatchModules": _READ,
    "ListAuditEvents": _READ,
    "Generate": _ASK,
    "Explain": _ASK,
    "ExplainAnswer": _ASK,
    "Remember": _WRITE,
    "Forget": _WRITE,
    "WarmPrefix": _WRITE,
    "PinPrefix": _WRITE,
    "UnpinPrefix": _WRITE,
    "EvictPrefix": _WRITE,
    "EvictModule": _WRITE,
    "EvictTenant": _WRITE,
    "GetUpload": _WRITE,
    "PublishModule": _WRITE,
    "RunGate": _WRITE,
    "PromoteModule": _WRITE,
    "RollbackModule": _WRITE,
    "SetTraffic": _WRITE,
    "DropAlias": _WRITE,
    "DeleteVersion": _WRITE,
    "PreloadModule": _WRITE,
    "UnloadModule": _WRITE,
    "ComposeModule": _WRITE,
    "ReleaseAudit": KeyRole.ADMIN,
}
