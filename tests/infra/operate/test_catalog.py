"""The tables of catalog.py agree with what was measured and with the context's defaults."""

from __future__ import annotations

import json

import pytest

from infra.config import CPU_TYPES, GPU_TYPES
from infra.operate.planning import catalog
from tests import ROOT
from trainer.contract import UserError


def test_every_default_type_is_in_the_table_with_or_without_a_gpu() -> None:
    assert all(type.gpu for type in catalog.gpu_types(GPU_TYPES.split(",")))
    assert not any(catalog.instance_type(name).gpu for name in CPU_TYPES.split(","))


def test_a_gpu_that_was_measured_has_the_speed_that_was_measured() -> None:
    results = {name: ROOT / f"benchmarks/results/gpu-{name.lower()}.json" for name in catalog.GPUS}
    measured = {name: json.loads(path.read_text())["rows"] for name, path in results.items() if path.exists()}
    assert "H100" in measured
    for name, rows in measured.items():
        assert catalog.GPUS[name].images_per_second == rows["ours_bf16"]["images_per_second"]


def test_a_dated_spot_price_is_of_a_type_in_the_table_and_below_its_list_price() -> None:
    assert catalog.SPOT_PRICES
    for name, price in catalog.SPOT_PRICES.items():
        assert 0.1 * catalog.TYPES[name].usd_per_hour < price < catalog.TYPES[name].usd_per_hour


@pytest.mark.parametrize(
    ("type", "market", "code"),
    [
        ("g5.xlarge", "spot", "L-3819A6DF"), ("gr6.4xlarge", "on-demand", "L-DB2E81BA"),
        ("g7e.2xlarge", "spot", "L-3819A6DF"), ("g7.2xlarge", "on-demand", "L-DB2E81BA"),
        ("p4d.24xlarge", "spot", "L-7212CCBC"), ("p5.4xlarge", "spot", "L-C4BD4855"),
        ("p5.4xlarge", "on-demand", "L-417A185B"), ("c7a.2xlarge", "spot", "L-34B43A08"),
        ("m7i.2xlarge", "on-demand", "L-1216C47A"), ("im4gn.large", "spot", "L-34B43A08"),
    ],
)  # fmt: skip
def test_each_family_has_its_quota_in_each_market(type: str, market: str, code: str) -> None:
    quota = catalog.quota_of(type)
    assert quota
    assert quota.code(market) == code


def test_accelerators_of_other_kinds_count_against_no_quota_of_ours() -> None:
    assert [catalog.quota_of(type) for type in ("inf2.xlarge", "trn1.2xlarge", "dl1.24xlarge")] == [None] * 3


def test_an_unknown_type_and_a_type_without_gpu_are_refused_with_what_to_use() -> None:
    with pytest.raises(UserError, match=r"'g9\.xlarge' is not in the table"):
        catalog.instance_type("g9.xlarge")
    with pytest.raises(UserError, match=r"'p3\.2xlarge' is not in the table"):  # Volta: torch has no kernels for it
        catalog.instance_type("p3.2xlarge")
    with pytest.raises(UserError, match=r"'c7a\.2xlarge' has no GPU: use types of g5"):
        catalog.gpu_types(["g5.xlarge", "c7a.2xlarge"])
