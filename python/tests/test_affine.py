"""The arithmetic of regions against sets of element numbers."""

import itertools
import random

import pytest

from strew import _affine
from strew._affine import Inexpressible


def pairs(whole):
    """(element of the line looked at, element beside it), one by one."""
    result = []
    for index in itertools.product(*(range(dim.n) for dim in whole.dims)):
        result.append((whole.start + sum(i * d.step for i, d in zip(index, whole.dims)),
                       whole.other + sum(i * d.other for i, d in zip(index, whole.dims))))
    return result


def random_view(rng, base):
    """A view of a dense array, made by slicing and transposing: (start, shape, steps)."""
    steps, n = [], 1
    for length in reversed(base):
        steps.insert(0, n)
        n *= length
    start, shape, strides = 0, [], []
    for length, step in zip(base, steps):
        by = rng.choice([1, 1, 1, 2, 3])
        first = rng.randrange(length)
        count = rng.randint(1, (length - first - 1) // by + 1)
        start += first * step
        shape.append(count)
        strides.append(step * by)
    order = rng.sample(range(len(base)), len(base))
    return start, tuple(shape[k] for k in order), tuple(strides[k] for k in order)


def dense(shape):
    steps, n = [], 1
    for length in reversed(shape):
        steps.insert(0, n)
        n *= length
    return tuple(steps)


def test_regions_meet_where_their_elements_do():
    rng = random.Random()
    met = refused = 0
    for _ in range(1500):
        base = tuple(rng.choice([1, 2, 3, 4, 6, 8, 12]) for _ in range(rng.randint(1, 4)))
        whole = []
        for _ in range(2):
            start, shape, steps = random_view(rng, base)
            beside = rng.sample(dense(shape), len(shape))
            whole.append(_affine.region(start, rng.randrange(50), shape, steps, tuple(beside)))
        a, b = whole
        want = sorted((y, x) for (p, x), (q, y) in itertools.product(pairs(a), pairs(b)) if p == q)
        try:
            got = _affine.meet(a, b)
        except Inexpressible:
            refused += 1
            continue
        assert sorted(p for one in got for p in pairs(one)) == want, (a, b)
        met += len(got) > 0
    assert met > 300 and refused < 600, (met, refused)


def test_views_have_the_elements_of_their_region():
    rng = random.Random()
    said = 0
    for _ in range(1500):
        shape = tuple(rng.choice([1, 2, 3, 4, 6, 8]) for _ in range(rng.randint(0, 4)))
        start, part, steps = random_view(rng, shape)
        if rng.random() < 0.4 and part:  # a view of a copy that was reshaped: several digits
            part, steps = tuple(reversed(part)), tuple(reversed(steps))
        whole = _affine.region(start, 7, part, steps, dense(part))
        try:
            boxes = _affine.view_boxes(whole, shape, 6)
        except Inexpressible:
            continue
        got = []
        for box in boxes:
            weights = dense(box.view)
            assert all(s + e <= v for s, e, v in zip(box.start, box.extent, box.view))
            for index in itertools.product(*map(range, box.extent)):
                got.append((sum((s + i) * w for s, i, w in zip(box.start, index, weights)),
                            box.offset + sum(i * s for i, s in zip(index, box.stride))))
            rest = list(box.view)  # the view refines the shape
            for length in shape:
                product = 1
                while product < length or (rest and rest[0] == 1 and product == length
                                           and len(rest) > 1):
                    product *= rest.pop(0)
                assert product == length, (shape, box)
        assert sorted(got) == sorted(pairs(whole)), (shape, whole)
        said += 1
    assert said > 1000


def test_what_cannot_be_said_is_not_guessed():
    step = _affine.region(0, 0, (600,), (2,), (1,))
    with pytest.raises(Inexpressible):
        _affine.view_boxes(step, (1199,), 6)
