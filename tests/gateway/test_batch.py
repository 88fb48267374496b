"""A batch with bad items over a gateway. `loadtests.memory_batch` sends 10,000."""

from __future__ import annotations

from pathlib import Path

from loadtests.texts.memory_batch import BAD, Figures, draw_batch, judge, run
from memserve.client import ItemRefusal, ItemResult

ITEMS, BAD_SHARE = 200, 0.1


async def test_each_bad_item_is_told_by_its_field_and_the_rest_is_stored(tmp_path: Path) -> None:
    figures = await run(tmp_path, ITEMS, bad_share=BAD_SHARE)
    assert figures.by_field.total() == figures.bad == 2 * len(BAD)
    wrong = (
        figures.not_told, figures.refused, figures.missing, figures.strangers, figures.out_of_order,
        figures.not_found, figures.changed_again,
    )  # fmt: skip
    assert wrong == (0, 0, 0, 0, 0, 0, 0)


def test_what_is_told_wrongly_is_seen() -> None:
    batch = draw_batch(ITEMS, 1, BAD_SHARE)
    results = [ItemResult(place) for place in range(ITEMS)]
    place, name = next(iter(batch.bad.items()))
    results[place] = ItemResult(place, refusal=ItemRefusal("INVALID_ARGUMENT", name, "is bad"))
    good = next(each for each in range(ITEMS) if each not in batch.bad)
    results[good] = ItemResult(good, refusal=ItemRefusal("INVALID_ARGUMENT", "text", "is bad"))
    figures = Figures()
    judge(batch, results, figures)
    assert figures.not_told == len(batch.bad) - 1
    assert figures.refused == 1
    cut_off = Figures()
    judge(batch, [], cut_off)
    assert cut_off.not_told == len(batch.bad)
