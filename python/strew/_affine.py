"""Boxes of storages, as arithmetic on element numbers: where each element of a copy came from.

A storage is a line of elements. A *region* is an offset and dimensions (length, stride) that visit
each of its elements once. A *write* says that a region of a storage holds a region of a source
tensor: both run through the same dimensions, each with its own strides. Nothing here knows torch.

Two regions are compared digit by digit. All their strides, sorted, must be a chain in which each
divides the next; they are the weights of a number system in which every region that fits is a box,
and then an intersection is one of intervals. Lengths that do not fit a digit are split, or cut into
several boxes. Where strides are no chain, short dimensions are taken index by index; what remains
is Inexpressible, and never guessed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

BOXES_MAX = 4096  # that one region may be cut into
UNROLL_MAX = 512  # indices of a dimension that are taken one by one


class Inexpressible(Exception):
    """What was asked cannot be said in boxes and strides."""


@dataclasses.dataclass(frozen=True)
class Dim:
    """n indices; `step` elements apart in the line looked at, `other` in the one beside it."""

    n: int
    step: int
    other: int


@dataclasses.dataclass(frozen=True)
class Region:
    """Elements start + sum(i_k * step_k) of one line, beside start_other + ... of another."""

    start: int
    other: int
    dims: tuple[Dim, ...]

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(dim.n for dim in self.dims)

    @property
    def end(self) -> int:
        """One past the last element of the line looked at."""
        return self.start + sum(dim.step * (dim.n - 1) for dim in self.dims) + 1

    def swapped(self) -> Region:
        """The same, looking at the other line."""
        return Region(self.other, self.start,
                      tuple(Dim(dim.n, dim.other, dim.step) for dim in self.dims))


def region(start: int, other: int, shape: tuple[int, ...], steps: tuple[int, ...],
           others: tuple[int, ...]) -> Region:
    """A region, with dimensions of one index left out and neighbours merged that are one."""
    dims = [Dim(n, s, o) for n, s, o in zip(shape, steps, others) if n != 1]
    return Region(start, other, merged(dims))


def merged(dims: list[Dim]) -> tuple[Dim, ...]:
    """Dimensions by falling step; two become one where the outer goes on where the inner ends."""
    result: list[Dim] = []
    for dim in sorted(dims, key=lambda d: (-d.step, -d.other)):
        if result and result[-1].step == dim.step * dim.n and \
                result[-1].other == dim.other * dim.n:
            dim = Dim(result.pop().n * dim.n, dim.step, dim.other)
        result.append(dim)
    return tuple(result)


def _unroll(whole: Region, dim: Dim) -> list[Region]:
    if dim.n > UNROLL_MAX:
        raise Inexpressible(f"a stride of {dim.step} elements, {dim.n} times")
    rest = list(whole.dims)
    rest.remove(dim)
    return [Region(whole.start + i * dim.step, whole.other + i * dim.other, tuple(rest))
            for i in range(dim.n)]


def without_repeats(whole: Region) -> list[Region]:
    """One region for each use of an element: a step of 0 (an expanded dimension) is unrolled."""
    for dim in whole.dims:
        if dim.step == 0 and dim.n > 1:
            return [one for part in _unroll(whole, dim) for one in without_repeats(part)]
    return [whole]


def is_chain(weights: list[int]) -> bool:
    """Sorted upwards: each divides the next."""
    return all(b % a == 0 for a, b in zip(weights, weights[1:]))


@dataclasses.dataclass(frozen=True)
class Digits:
    """A region as a box of digits: for each weight, (first digit, how many, other's stride)."""

    start: int
    other: int
    boxes: tuple[tuple[int, int, int], ...]


def _digits_of(number: int, weights: list[int]) -> list[int]:
    result = []
    for weight in reversed(weights):
        result.append(number // weight)
        number %= weight
    return result[::-1]


def to_digits(whole: Region, weights: list[int]) -> Iterator[Digits]:
    """Cuts a region into boxes of digits. weights: a chain, upwards, that has all its steps."""
    todo, done = [whole], 0
    while todo:
        one = todo.pop()
        first = _digits_of(one.start, weights)
        boxes = [(digit, 1, 0) for digit in first]
        parts: list[Region] | None = None
        for dim in one.dims:
            at = weights.index(dim.step)
            room = weights[at + 1] // dim.step - first[at] if at + 1 < len(weights) else dim.n
            if boxes[at][1] != 1:
                raise Inexpressible(f"two dimensions with a stride of {dim.step} elements")
            if dim.n > room:
                parts = _cut(one, dim, room, weights[at + 1] // dim.step)
                break
            boxes[at] = (first[at], dim.n, dim.other)
        if parts is None:
            yield Digits(one.start, one.other, tuple(boxes))
            done += 1
        else:
            todo += parts
        if done + len(todo) > BOXES_MAX:
            raise Inexpressible(f"more than {BOXES_MAX} boxes")


def _cut(whole: Region, dim: Dim, room: int, radix: int) -> list[Region]:
    """A dimension that runs over its digit: split in two if it fills it, else cut."""
    rest = list(whole.dims)
    rest.remove(dim)
    if room == radix and dim.n % radix == 0:
        outer = Dim(dim.n // radix, dim.step * radix, dim.other * radix)
        return [Region(whole.start, whole.other, (*rest, Dim(radix, dim.step, dim.other), outer))]
    head = room if room < radix else dim.n - dim.n % radix
    parts = []
    for begin, n in ((0, head), (head, dim.n - head)):
        kept = (*rest, Dim(n, dim.step, dim.other)) if n > 1 else tuple(rest)
        parts.append(Region(whole.start + begin * dim.step, whole.other + begin * dim.other, kept))
    return parts


def chained(whole: Region, fixed: list[int]) -> list[tuple[Region, list[int]]]:
    """The region in parts, each with weights that are a chain of its steps and `fixed`."""
    weights = sorted({dim.step for dim in whole.dims} | set(fixed))
    if is_chain(weights):
        return [(whole, weights)]
    bad = [dim for dim in whole.dims if dim.step not in fixed]
    if not bad:
        raise Inexpressible("strides that do not divide each other")
    return [pair for part in _unroll(whole, min(bad, key=lambda dim: dim.n))
            for pair in chained(part, fixed)]


def meet(a: Region, b: Region) -> list[Region]:
    """The elements that both have of the line: beside them `other` of b, then `other` of a.

    Returned regions have b's other line as the one looked at, and a's as the other one.
    """
    if a.start >= b.end or b.start >= a.end or not a.count or not b.count:
        return []
    result = []
    for part, weights in chained(a, sorted({dim.step for dim in b.dims})):
        if not weights:
            weights = [1]
        if part.start % weights[0] != b.start % weights[0]:
            continue
        ours, theirs = list(to_digits(part, weights)), list(to_digits(b, weights))
        for x in ours:
            for y in theirs:
                one = _meet_digits(x, y)
                if one is not None:
                    result.append(one)
    return result


def _meet_digits(a: Digits, b: Digits) -> Region | None:
    start, other, dims = b.other, a.other, []
    for (a_first, a_n, a_step), (b_first, b_n, b_step) in zip(a.boxes, b.boxes):
        low, high = max(a_first, b_first), min(a_first + a_n, b_first + b_n)
        if low >= high:
            return None
        start += (low - b_first) * b_step
        other += (low - a_first) * a_step
        if high - low > 1:
            dims.append(Dim(high - low, b_step, a_step))
    return Region(start, other, merged(dims))


@dataclasses.dataclass(frozen=True)
class ViewBox:
    """A box of a refined view of a tensor, and where it goes: what a piece says."""

    view: tuple[int, ...]
    start: tuple[int, ...]
    extent: tuple[int, ...]
    offset: int
    stride: tuple[int, ...]


def view_boxes(whole: Region, shape: tuple[int, ...], most_dims: int) -> list[ViewBox]:
    """Boxes of a dense tensor of that shape, at which `whole` looks; the target is beside it."""
    bounds = [math.prod(shape[k + 1:]) for k in range(len(shape))]
    total = math.prod(shape)
    result = []
    for part, weights in chained(whole, sorted(set(bounds) | {total} if total else set(bounds))):
        if not weights:
            weights = [1]
        for box in to_digits(part, [*weights]):
            result.append(_view_box(box, weights, shape, bounds, most_dims))
    return result


def _view_box(box: Digits, weights: list[int], shape: tuple[int, ...], bounds: list[int],
              most_dims: int) -> ViewBox:
    view: list[int] = []
    places: list[tuple[int, int, int]] = []
    for length, bound in zip(shape, bounds):
        inside = [w for w in weights if bound <= w < bound * length]
        if length == 1:
            view.append(1)
            places.append((0, 1, 0))
            continue
        top = bound * length
        for weight in reversed(inside):
            view.append(top // weight)
            places.append(box.boxes[weights.index(weight)])
            top = weight
    if len(view) > most_dims:
        view, places = _fewer(view, places, shape, most_dims)
    return ViewBox(tuple(view), tuple(p[0] for p in places), tuple(p[1] for p in places), box.other,
                   tuple(p[2] for p in places))


def _fewer(view: list[int], places: list[tuple[int, int, int]], shape: tuple[int, ...],
           most_dims: int) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Joins digits of one dimension of the tensor where the box allows it."""
    k, filled, of = len(view) - 1, 1, len(shape) - 1
    while k > 0 and len(view) > most_dims:
        filled *= view[k]
        if filled == shape[of]:
            filled, of, k = 1, of - 1, k - 1
            continue
        first, n, step = places[k]
        outer_first, outer_n, outer_step = places[k - 1]
        one = outer_n == 1
        if one or (n == view[k] and outer_step == step * n):
            filled //= view[k]
            places[k - 1] = (outer_first * view[k] + first, n if one else outer_n * n, step)
            view[k - 1] *= view[k]
            del view[k], places[k]
        k -= 1
    if len(view) > most_dims:
        raise Inexpressible(f"a view of {len(view)} dimensions, at most {most_dims} are supported")
    return view, places
