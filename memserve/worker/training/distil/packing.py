"""Many prompts with answers in few rows of tokens, with nothing computed twice.

Rows that begin alike are packed behind one copy of their beginning. A mask keeps each from the others, and
positions begin anew behind the copy: each row's logits are those that it would have alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memserve.worker.training.distil.prompts import Row

WIDTHS = tuple(range(64, 641, 32))
"""Of a pack, in tokens. A longer row has a pack for itself."""
COSTLY_WIDTH = 2000
"""A token of a pack of this width costs twice what one of a short pack does: attention grows with it."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Packs as one batch. Each tensor is [packs, tokens]."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    """[packs, 1, tokens, tokens], true where a token sees another."""
    asked: Tensor
    """[answer tokens, 2]: pack and place of the token before each token of the answers, in the order of the
    rows."""
    wanted: Tensor
    """[answer tokens]"""
    starts: tuple[int, ...]
    """[rows + 1]: where the tokens of each row's answer are in `wanted`."""

    @property
    def tokens(self) -> int:
        return int(self.ids.numel())


@dataclass(slots=True)
class _Pack:
    rows: list[int]
    prefix: int
    rest: int
    """Tokens behind the common beginning, of all rows."""


def packed(rows: Sequence[Row], pad: int, widths: Sequence[int] = WIDTHS) -> Packed:
    """Pack rows in the width that costs least.

    Raises ValueError for no rows, or for one without a prompt or an answer.
    """
    if not rows or any(not row.prompt or not row.answer for row in rows):
        raise ValueError("a row needs a prompt and an answer")
    packs = min((_packs(rows, width) for width in widths), key=_cost)
    widest = _widest(packs)
    ids = torch.full((len(packs), widest), pad)
    positions = torch.zeros(len(packs), widest, dtype=torch.long)
    owners = torch.full((len(packs), widest), -1)
    asked: dict[int, list[tuple[int, int]]] = {}
    for number, pack in enumerate(packs):
        prefix = pack.prefix
        ids[number, :prefix] = torch.tensor(rows[pack.rows[0]].prompt[:prefix])
        positions[number, :prefix] = torch.arange(prefix)
        owners[number, :prefix] = 0
        at = prefix
        for owner, place in enumerate(pack.rows, start=1):
            row = rows[place]
            # The last token of an answer is predicted, and predicts nothing.
            own = (*row.prompt[prefix:], *row.answer[:-1])
            end = at + len(own)
            ids[number, at:end] = torch.tensor(own)
            positions[number, at:end] = torch.arange(prefix, prefix + len(own))
            owners[number, at:end] = owner
            asked[place] = [(number, spot) for spot in range(end - len(row.answer), end)]
            at = end
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + len(row.answer))
    return Packed(
        ids,
        positions,
        _mask(owners),
        torch.tensor([spot for place in range(len(rows)) for spot in asked[place]]),
        torch.tensor([token for row in rows for token in row.answer]),
        tuple(starts),
    )


def _widest(packs: Sequence[_Pack]) -> int:
    return max(pack.prefix + pack.rest for pack in packs)


def _cost(packs: Sequence[_Pack]) -> float:
    widest = _widest(packs)
    return len(packs) * widest * (1 + widest / COSTLY_WIDTH)


def _packs(rows: Sequence[Row], width: int) -> list[_Pack]:
    """Rows in the order of their tokens, so that those with a long common beginning are neighbours."""
    packs: list[_Pack] = []
    for place in sorted(range(len(rows)), key=lambda place: rows[place].prompt):
        row = rows[place]
        size = len(row.prompt) + len(row.answer) - 1
        if packs:
            pack = packs[-1]
            prefix = min(pack.prefix, common(rows[pack.rows[0]].prompt, row.prompt), len(row.prompt) - 1)
            rest = pack.rest + (pack.prefix - prefix) * len(pack.rows) + size - prefix
            # Where a beginning would be repeated for too many rows, a pack of its own is shorter.
            if prefix + rest <= min(width, pack.prefix + pack.rest + size):
                pack.rows.append(place)
                pack.prefix, pack.rest = prefix, rest
                continue
        own = len(row.prompt) - 1
        packs.append(_Pack([place], own, size - own))
    return packs


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))


def _mask(owners: Tensor) -> Tensor:
    """owners: [packs, tokens], 0 for the common beginning, -1 for padding, which sees itself."""
    width = owners.shape[1]
    before = torch.ones(width, width, dtype=torch.bool).tril()
    same = owners[:, :, None] == owners[:, None, :]
    shared = (owners[:, None, :] == 0) & (owners[:, :, None] >= 0)
    mask: Tensor = ((same | shared) & before)[:, None]
    return mask
