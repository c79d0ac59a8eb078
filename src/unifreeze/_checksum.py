"""Folding a large array into a short one that changes with every byte, at little more than the speed of memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from math import isqrt
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Odd, so that multiplying by it loses nothing modulo 2**64. Its powers weigh the columns.
FACTOR = 0x9E3779B97F4A7C15
_WIDEST = 1 << 10
# Words that a cache holds, so that they come from memory once; with fewer, the calls take longer than the sums.
_BLOCK = 1 << 16
# Below so many bytes a thread costs more than it saves, and more threads than these wait for memory.
_WORTH_A_THREAD = 1 << 18
_THREADS = 4

T = TypeVar("T")
Made = TypeVar("Made")


def width(size: int) -> int:
    """How many columns ``size`` words are laid in: as many as rows, but not too many; an odd number."""
    return min(isqrt(size), _WIDEST) | 1


def weights(columns: int) -> NDArray[np.uint64]:
    """The weight of each column: the powers of an odd number, from the first on."""
    return _powers()[:columns]


@cache
def _powers() -> NDArray[np.uint64]:
    import numpy as np

    return np.multiply.accumulate(np.full(_WIDEST + 1, FACTOR, np.uint64))


def folded(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Folds words of 64 bits: into the weighted sum of each row, the plain sum of each column, and the words that fill no row, all modulo 2**64.

    What a change of one word adds to the sum of its row, its difference times an odd weight, is not 0; nor is what it adds to that of its column. So a change
    of two or three words can't hide: one of them is alone in its row or in its column. That holds for flipped signs, too, of which two in one row would
    cancel, since multiplication does not spread a word's highest bit. What hides must lie at the corners of rectangles and cancel along all their sides: by
    a chance of 2**-64 for each side, and of more only where the changes are confined to the highest bits of all four words. Negating everything shows in each
    row: the lowest bit that flips does so an odd number of times, under odd weights. Two rows that change places show by their sums, which stand in order.

    Args:
        words: An array of shape ``(n,)``.

    Example:
        >>> import numpy as np
        >>> words = np.arange(100_000, dtype=np.uint64)
        >>> before = folded(words)
        >>> words[[7, 70_007]] ^= np.uint64(1 << 63)
        >>> bool((folded(words) == before).all())
        False
    """
    import numpy as np

    columns = width(words.size)
    rows = words.size // columns
    grid, weight, step = words[: rows * columns].reshape(rows, columns), weights(columns), _BLOCK // columns
    across: list[NDArray[np.uint64]] = []
    down = np.zeros(columns, np.uint64)
    for start in range(0, rows, step):
        block = grid[start : start + step]
        across.append(np.einsum("c,rc->r", weight, block))
        down += np.add.reduce(block, axis=0)
    return np.concatenate([*across, down, words[rows * columns :]])


def folded_bytes(octets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Folds the bytes of an array: those that fill words of 64 bits as ``folded`` does, and behind them the rest as it is.

    Args:
        octets: An array of shape ``(n,)``.

    Example:
        >>> import numpy as np
        >>> folded_bytes(np.zeros(80_003, np.uint8)).size  # 99 rows of 101 words, one word and three bytes more
        1611
    """
    import numpy as np

    whole = octets.size // 8 * 8
    if whole == octets.size:
        return folded(octets.view(np.uint64)).view(np.uint8)
    return np.concatenate([folded(octets[:whole].view(np.uint64)).view(np.uint8), octets[whole:]])


def spread(work: Callable[[T], Made], items: Sequence[T], sizes: Iterable[int]) -> list[Made]:
    """Does what NumPy does without holding the interpreter (``folded``) to several large items at a time; to the others one by one.

    Args:
        work: What is done to each.
        items: The items.
        sizes: The bytes of each.

    Example:
        >>> spread(len, ["a", "bcd"], [1 << 20, 1 << 20])
        [1, 3]
    """
    large = [place for place, size in enumerate(sizes) if size >= _WORTH_A_THREAD]
    threads = min(len(large), _THREADS, os.cpu_count() or 1)
    if threads < 2:
        return [work(item) for item in items]
    done: dict[int, Made] = {}
    places = iter(large)

    def share() -> None:
        for place in places:  # each place goes to whoever asks next
            done[place] = work(items[place])

    # Made for the moment: a process that has threads of its own at all times can't be forked safely, and loaders of data fork.
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(share) for _ in range(threads - 1)]
        share()
        for other in others:
            other.result()
    return [done[place] if place in done else work(item) for place, item in enumerate(items)]
