"""The images of a test on which a network does best and worst, without keeping the results of all."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Any

from pliant import distributed

SHOWN = 6  # images at each end


@dataclass(frozen=True)
class RankedImage:
    """An image of a test.

    Attributes:
        rank: The process that evaluated it.
        place: How many images this process evaluated before.
        score: The higher, the better the result.
        result: The result, as the task keeps it.
    """

    rank: int
    place: int
    score: float
    result: Any


class Extremes:
    """The images with the lowest and the highest scores of a process.

    Args:
        number: How many are kept at each end.
    """

    def __init__(self, number: int = SHOWN) -> None:
        self.number = number
        self.count = 0
        self._worst: list[tuple[float, int, Any]] = []  # heaps, whose first one goes next
        self._best: list[tuple[float, int, Any]] = []

    def add(self, score: float, result: Any) -> None:
        """Add the next image of this process; a score of NaN counts it and leaves it out."""
        place = self.count
        self.count += 1
        if math.isnan(score):
            return
        for heap, sign in ((self._worst, -1), (self._best, 1)):
            entry = (sign * score, sign * place, result)  # as in one list that is sorted by score and place
            if len(heap) < self.number:
                heapq.heappush(heap, entry)
            elif entry[:2] > heap[0][:2]:
                heapq.heapreplace(heap, entry)

    def gathered(self) -> list[RankedImage]:
        """Those of all processes, each image once, from the lowest score to the highest."""
        own = {place: (score, result) for score, place, result in self._best}
        own |= {-place: (-score, result) for score, place, result in self._worst}
        rank = distributed.rank()
        mine = [RankedImage(rank, place, score, result) for place, (score, result) in own.items()]
        images = [image for share in distributed.gather(mine) for image in share]
        return sorted(images, key=lambda image: (image.score, image.rank, image.place))


def ends(images: list[Any], number: int = SHOWN) -> tuple[list[Any], list[Any]]:
    """The worst and the best of images in the order of their scores, each image once, the most extreme ones first."""
    worst = images[: min(number, (len(images) + 1) // 2)]
    return worst, images[len(worst) :][-number:][::-1]
