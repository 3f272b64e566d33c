"""Labels beside points, placed so that they cover neither one another nor a point."""

from collections.abc import Iterator, Sequence

__all__ = ["Box", "free_places"]

Box = tuple[float, float, float, float]
"""The smallest x and y of a rectangle, then the largest."""

DOT = 4
"""Half the side of the square that a point takes, in pixels or points as everything here."""

ACROSS, ABOVE, BELOW = 6, 4, 6
"""The distances of a label from the middle of its point."""


def free_places(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], inside: Box
) -> Iterator[tuple[int, Box]]:
    """Yield the place of each label that has room: the number of its point, and its rectangle.

    Each is tried right of its point, left, towards smaller y and towards larger y.

    Args:
        points: The x and y of all points.
        sizes: The width and height of the labels of the first of them, the most important first.
        inside: The rectangle that labels stay inside.

    Example:
        >>> list(free_places([(50, 50), (60, 50)], [(20, 10), (20, 10)], (0, 0, 100, 100)))
        [(0, (24, 45.0, 44, 55.0)), (1, (66, 45.0, 86, 55.0))]
    """
    taken = [_around(point) for point in points]
    for number, ((x, y), (width, height)) in enumerate(zip(points, sizes, strict=False)):
        places = (
            (x + ACROSS, y - height / 2),
            (x - ACROSS - width, y - height / 2),
            (x - width / 2, y - ABOVE - height),
            (x - width / 2, y + BELOW),
        )
        for left, low in places:
            box = (left, low, left + width, low + height)
            fits = box[0] >= inside[0] and box[1] >= inside[1] and box[2] <= inside[2] and box[3] <= inside[3]
            if fits and not any(_cover(box, other) for other in taken if other != _around((x, y))):
                taken.append(box)
                yield number, box
                break


def _around(point: tuple[float, float]) -> Box:
    x, y = point
    return x - DOT, y - DOT, x + DOT, y + DOT


def _cover(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
