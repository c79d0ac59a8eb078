"""The fold of a large array, and its mark: what must show in them."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable

import numpy as np
import pytest

from unifreeze.plugin import Mark, folded, mark, spread, width

SIZE = 70_001
WORDS = np.random.default_rng(0).integers(0, 1 << 64, SIZE, dtype=np.uint64)
WIDE = width(SIZE)
TOP = np.uint64(1 << 63)


def at(change: Callable[[np.ndarray], object]) -> np.ndarray:
    words = WORDS.copy()
    change(words)
    assert not np.array_equal(words, WORDS)
    return words


def flipped(*places: int) -> np.ndarray:
    words = WORDS.copy()
    words[list(places)] ^= TOP
    return words


def swapped(one: slice, other: slice) -> np.ndarray:
    words = WORDS.copy()
    words[one], words[other] = WORDS[other], WORDS[one]
    return words


CHANGES = {
    "one lowest bit": at(lambda words: np.bitwise_xor(words[5:6], np.uint64(1), out=words[5:6])),
    "one highest bit": flipped(9 * WIDE + 4),
    "a word that fills no row": flipped(SIZE - 1),
    "two signs in a row": flipped(3, 8),
    "two signs in a column": flipped(3, 3 + 12 * WIDE),
    "three signs at a corner": flipped(3, 8, 3 + 12 * WIDE),
    "all signs": WORDS ^ TOP,
    "all signs of halves": WORDS ^ np.uint64(1 << 63 | 1 << 31),
    "two words swapped in a row": swapped(slice(3, 4), slice(8, 9)),
    "two words swapped in a column": swapped(slice(3, 4), slice(3 + WIDE, 4 + WIDE)),
    "two rows swapped": swapped(slice(0, WIDE), slice(5 * WIDE, 6 * WIDE)),
    "turned round": WORDS[::-1].copy(),
}


@pytest.mark.parametrize("words", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_shows(words: np.ndarray) -> None:
    assert not np.array_equal(folded(words), folded(WORDS))
    assert mark(words.data) != mark(WORDS.data)


def test_what_plain_sums_of_rows_and_columns_would_miss() -> None:
    square = np.ix_([2, 7], [3, 8])
    one, other = WORDS[: WIDE * 10].reshape(10, WIDE).copy(), WORDS[: WIDE * 10].reshape(10, WIDE).copy()
    one[square], other[square] = [[1, 2], [2, 1]], [[2, 1], [1, 2]]
    assert np.array_equal(one.sum(0), other.sum(0))
    assert np.array_equal(one.sum(1), other.sum(1))
    rest = WORDS[WIDE * 10 :]
    assert not np.array_equal(folded(np.concatenate([one.ravel(), rest])), folded(np.concatenate([other.ravel(), rest])))
    assert mark(np.concatenate([one.ravel(), rest]).data) != mark(np.concatenate([other.ravel(), rest]).data)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 8, 1_000, SIZE, 3_000_017])
def test_every_place_counts(size: int) -> None:
    words = np.random.default_rng(1).integers(0, 1 << 64, size, dtype=np.uint64)
    before, marked = folded(words), mark(words.data)
    assert before.size <= 3 * width(size) + size // width(size)
    for place in {0, size // 2, size - 1} if size else ():
        words[place] += np.uint64(1)
        assert not np.array_equal(folded(words), before)
        assert mark(words.data) != marked
        words[place] -= np.uint64(1)
    assert np.array_equal(folded(words), before)
    assert mark(words.copy().data) == marked == mark(words.tobytes())


def test_a_mark_is_no_fingerprint() -> None:
    """They may stand beside one another, and which of them it is says how to take the next one; a copy of a Freezing must know, too."""
    made = mark(WORDS.data)
    assert type(made) is Mark
    assert [type(again) for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)))] == [Mark, Mark]


def test_the_number_of_columns_is_odd() -> None:
    assert all(width(size) % 2 for size in range(2_000_000)[::997])


def test_work_is_spread_over_threads_where_it_is_large_and_comes_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    before, sizes, both = threading.active_count(), [0, 1 << 20, 5, 1 << 22], threading.Barrier(2, timeout=30)

    def work(place: int) -> tuple[int, bool]:
        if sizes[place] >= 1 << 18:
            both.wait()  # breaks unless the other large one is worked on at the same time
        return place, threading.current_thread() is threading.main_thread()

    made = spread(work, range(4), sizes)
    assert [place for place, _ in made] == [0, 1, 2, 3]
    assert [here for _, here in made][::2] == [True, True]
    for broken in ([0, 1, 1, 1], [1, 1, 1, 0]):
        with pytest.raises(ZeroDivisionError):
            spread(lambda one: 1 // one, broken, [1 << 20] * 4)
    assert threading.active_count() == before
