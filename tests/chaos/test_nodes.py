"""A slice of `make chaos ARGS=nodes`: whole runs on two machines of a network, one of which is lost."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.chaos import nodes
from tests.chaos.lab import Lab, open_lab

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, s3_endpoint: str, aws_environ: dict[str, str]) -> Iterator[Lab]:
    with open_lab(tmp_path_factory.mktemp("nodes"), s3_endpoint, aws_environ) as made:
        yield made


def test_a_run_whose_leading_machine_is_lost_without_a_word_ends_as_if_nothing_had_happened(lab: Lab) -> None:
    case = nodes.disturbed(lab, ["head-killed"], 2, random.Random(0))
    assert case.injected == 1
    assert case.notes["next_step_seconds"], "the loss was noticed, and a later attempt went on"
