"""A short slice of `make draws`: sources with damages, interrupted somewhere, are right or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.draws.__main__ import describe
from tests.draws.draw import draw

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_what_is_drawn_is_prepared_right_or_refused_with_the_file_named(first: int, tmp_path: Path) -> None:
    draws = [draw(seed, tmp_path) for seed in range(first, first + 10)]
    assert not [describe(made, whole=True) for made in draws if made.wrong]
    assert {made.end for made in draws} == {"right", "refused"}


def test_a_seed_draws_the_same_again(tmp_path: Path) -> None:
    first, second = (draw(4, tmp_path) for _ in range(2))
    assert (first.form, first.damages, first.moment, first.files) == (
        second.form,
        second.damages,
        second.moment,
        second.files,
    )
