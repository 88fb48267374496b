"""Fetch a model once for a machine, whichever processes ask for it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from memserve.errors import StartupError
from memserve.model.fetch.place import Place, place_of
from memserve.model.fetch.progress import Telling, size_text, told
from memserve.model.fetch.sources import RemoteFile, Source, source_of
from memserve.model.fetch.stores import Store, StoreFailed, hub_snapshot, open_store
from memserve.model.files import ModelFiles
from memserve.model.manifest import manifest_of
from memserve.model.weights import advice

T = TypeVar("T")
# Before the second try of a file, the third, and so on.
PAUSES_S = (1.0, 2.0, 4.0, 8.0)
OTHER_WAY = (
    ". Where Hugging Face cannot be reached from here, name a mirror in HF_ENDPOINT, or copy the model's "
    "directory to this machine and name that; a gated model needs HF_TOKEN"
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be fetched, and how."""

    name: str
    """A Hugging Face name or a URL."""
    setting: str = "model"
    """The setting that names it, for refusals."""
    weights: bool = True
    """False: the tokenizer, the configuration and the templates alone."""
    digest: str = ""
    """The SHA-256 that the model must have, hex. Empty, or without weights: any."""
    reserve_bytes: int = 0
    """Room on the disk that must stay free."""
    pauses_s: Sequence[float] = field(default=PAUSES_S)
    open: Callable[[Source, str], Store] = field(default=open_store)


def fetch(wish: Wish, data: Path, telling: Telling | None = None) -> Path:
    """The directory of a model on this machine. It is fetched where it is not there.

    Two processes never fetch at the same time: the second waits for the first. A fetch that was ended goes on
    with the next whole file.

    data: the data directory.
    Raises StartupError when the model cannot be had, is damaged, or has another digest. Nothing of it is kept
    then but whole files of a fetch that may go on.
    """
    telling = telling or Telling()
    source = source_of(wish.name, wish.setting)
    place = place_of(data, source, weights=wish.weights)
    whole = place_of(data, source, weights=True)
    if not wish.weights and whole.is_complete and _fits(whole.model, wish.digest):
        return whole.model
    digest = wish.digest if wish.weights else ""
    if place.is_complete and _fits(place.model, digest):
        return place.model
    with place.held(telling.say):
        # The process that held it may have fetched it.
        if place.is_complete and _fits(place.model, digest):
            return place.model
        if source.is_hub and (snapshot := _cached(source, wish)) is not None:
            place.link(snapshot, manifest_of(snapshot, source.name, weights=wish.weights))
            return place.model
        try:
            _fetch(wish, source, place, telling)
        except OSError as error:
            raise StartupError(
                f"{wish.setting} {wish.name!r} cannot be fetched: {error.strerror or error}"
            ) from error
    return place.model


def check_digest(model: Path, wanted: str, name: str = "") -> None:
    """Raises StartupError with both digests where a model directory has another one.

    wanted: hex; "" for any. name: as the refusal has it; "" for the directory.
    """
    if not wanted:
        return
    _check_same(ModelFiles(model, 0, {}).model_digest(), wanted, name or str(model))


def _check_same(digest: str, wanted: str, name: str) -> None:
    if wanted not in ("", digest):
        raise StartupError(f"the model {name} has the digest {digest}, and model_digest is {wanted}")


def _fits(model: Path, digest: str) -> bool:
    try:
        check_digest(model, digest)
    except StartupError:
        return False
    return True


def _cached(source: Source, wish: Wish) -> Path | None:
    """What Hugging Face's own cache has, if it is whole and the right one."""
    snapshot = hub_snapshot(source.name)
    if snapshot is None or not all((snapshot / name).is_file() for name in ("config.json", "tokenizer.json")):
        return None
    try:
        whole = not wish.weights or ModelFiles(snapshot, 0, {}).checked_weights() > 0
    except StartupError:
        return None
    return snapshot if whole and _fits(snapshot, wish.digest if wish.weights else "") else None


def _fetch(wish: Wish, source: Source, place: Place, telling: Telling) -> None:
    store, files = _tried(wish, telling, lambda: _listed(wish, source))
    if place.is_complete and place.is_as(files):
        check_digest(place.model, wish.digest if wish.weights else "", source.name)
    whole = place.whole(files)
    missing = [file for file in files if file.name not in whole]
    total = sum(file.size_bytes or 0 for file in files)
    _check_room(wish, place, sum(file.size_bytes or 0 for file in missing))
    telling.say(f"fetching {source.name}: {len(missing)} of {len(files)} files, {size_text(total)} in all")
    began_s = time.monotonic()
    with told(source.name, total, place.partial_bytes, telling):
        for file in missing:
            _tried(wish, telling, lambda file=file: _fetch_file(store, file, place))  # type: ignore[misc]
    try:
        if wish.weights and not ModelFiles(place.partial, 0, {}).checked_weights():
            what = advice(_tried(wish, telling, store.other_weights))
            raise StartupError(f"{wish.setting} {wish.name!r} has no weights in safetensors files{what}")
        manifest = manifest_of(place.partial, source.name, weights=wish.weights)
        if wish.weights:
            _check_same(manifest.digest, wish.digest, source.name)
    except StartupError as error:
        place.drop_partial()
        raise StartupError(
            f"{str(error).replace(str(place.partial), source.name)}; nothing of it is kept"
        ) from None
    place.complete(manifest, files)
    telling.say(f"fetched {source.name} in {time.monotonic() - began_s:.1f} s: {place.model}")


def _listed(wish: Wish, source: Source) -> tuple[Store, list[RemoteFile]]:
    store = wish.open(source, wish.setting)
    files = store.files(weights=wish.weights)
    if not any(file.name == "config.json" for file in files):
        what = advice(store.other_weights())
        raise StoreFailed(f"there is no config.json, so it is no model{what}", is_final=True)
    return store, files


def _fetch_file(store: Store, file: RemoteFile, place: Place) -> None:
    part = place.part_of(file)
    store.get(file.name, part)
    size = part.stat().st_size
    if file.size_bytes is not None and size != file.size_bytes:
        raise StoreFailed(f"{file.name}: {size} of {file.size_bytes} bytes came", is_final=False)
    place.keep(file)


def _check_room(wish: Wish, place: Place, needed_bytes: int) -> None:
    free = shutil.disk_usage(place.partial).free - wish.reserve_bytes
    if needed_bytes > free:
        raise StartupError(
            f"{wish.setting} {wish.name!r} needs {size_text(needed_bytes)}, and the disk of data_dir has "
            f"{size_text(max(free, 0))} to give (disk_reserve_bytes stays free)"
        )


def _tried(wish: Wish, telling: Telling, step: Callable[[], T]) -> T:
    """Take a step again after a failure that may pass, a few times. Raises StartupError."""
    for pause_s in (*wish.pauses_s, None):
        try:
            return step()
        except StoreFailed as error:
            if error.is_final or pause_s is None:
                tries = "" if error.is_final else f" ({len(wish.pauses_s) + 1} tries)"
                way = OTHER_WAY if source_of(wish.name, wish.setting).is_hub else ""
                raise StartupError(
                    f"{wish.setting} {wish.name!r} cannot be fetched{tries}: {error}{way}"
                ) from None
            telling.say(f"{error}; trying again in {pause_s:g} s")
            time.sleep(pause_s)
    raise AssertionError
