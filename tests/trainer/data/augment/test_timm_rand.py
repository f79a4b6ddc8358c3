"""timm's RandAugment, against timm on PIL images: every operation, whole images, and what is drawn how often."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kstest, truncnorm
from torch import Tensor

from tests.trainer.data.augment.samples import assert_share, samples
from trainer.data.augment.geometry import GEOMETRIC
from trainer.data.augment.policies import OPERATIONS, SIGNED, TIMM, apply_policy, choose_operations, policy_draws
from trainer.recipes.config import RegularizeConfig

pytestmark = pytest.mark.slow

BILINEAR = Image.Resampling.BILINEAR
MEAN, FILL = (0.485, 0.456, 0.406), (124, 116, 104)
A3 = RegularizeConfig(augment="timm_rand", interpolation="bilinear", rand_magnitude=6, rand_std=0.5)
NAMES = {  # ours: timm's, of the set whose severity rises
    name: {"TranslateX": "TranslateXRel", "TranslateY": "TranslateYRel"}.get(name, name)
    + "Increasing" * (name in ("Brightness", "Color", "Contrast", "Sharpness", "Posterize", "Solarize"))
    for name in TIMM
}
EXACT = ("Brightness", "Posterize", "Solarize", "Equalize", "Invert", "SolarizeAdd")  # others: a level, by rounding


@pytest.fixture(scope="module")
def timm() -> ModuleType:
    """timm.data.auto_augment alone: the whole of timm takes seconds to import."""
    package = importlib.util.find_spec("timm")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "data" / "auto_augment.py"
    spec = importlib.util.spec_from_file_location("timm_auto_augment", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def replay(timm: ModuleType, monkeypatch: pytest.MonkeyPatch, draws: Sequence[float]) -> None:
    """Let timm choose what these uniforms choose here. It negates above one half, and its shifts move the source."""
    names, answers, levels = list[str](), list[float](), list[float]()
    for which, happens, strength, sign in zip(*[iter(draws)] * 4, strict=True):
        name = TIMM[int(which * len(TIMM))]
        names.append(NAMES[name])
        answers.append(happens)
        if happens < 0.5:
            levels.append(NormalDist(6, 0.5).inv_cdf(strength))
            answers += [sign if name.startswith("Translate") else 1 - sign] * bool(SIGNED[OPERATIONS.index(name)])
    chances, gauss = iter(answers), iter(levels)
    monkeypatch.setattr(timm, "random", SimpleNamespace(random=lambda: next(chances), gauss=lambda *_: next(gauss)))

    def choice(ops: list[Any], count: int, *, replace: bool, p: object) -> list[Any]:
        assert (count, replace, p) == (2, True, None)
        return [{op.name: op for op in ops}[name] for name in names]

    monkeypatch.setattr(timm, "np", SimpleNamespace(random=SimpleNamespace(choice=choice)))


def theirs(
    timm: ModuleType, monkeypatch: pytest.MonkeyPatch, image: Tensor, draws: np.ndarray, mode: int = BILINEAR
) -> Tensor:
    """(H, W, 3) uint8: what timm's `--aa` makes of an image with these uniforms, from PIL to PIL."""
    replay(timm, monkeypatch, draws.tolist())
    whole = timm.rand_augment_transform("rand-m6-mstd0.5-inc1", {"img_mean": FILL, "interpolation": mode})
    return torch.from_numpy(np.array(whole(Image.fromarray(image.numpy()))))


@pytest.mark.parametrize("op", TIMM)
def test_an_operation_is_that_of_timm_within_a_level(
    op: str, timm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the magnitude and its sign: 4.2 to 7.6 of 10. The second operation of the pair does not happen."""
    images, which = samples(), (TIMM.index(op) + 0.5) / len(TIMM)
    strengths = [NormalDist().cdf(z) for z in np.linspace(-3.5, 3.2, len(images))]
    draws = np.array(
        [[which, 0.1, strength, 0.2 + 0.6 * (i % 2), which, 0.9, 0.5, 0.5] for i, strength in enumerate(strengths)]
    )
    found = apply_policy(images, draws, A3, MEAN)
    differences = [
        (mine.int() - theirs(timm, monkeypatch, image, row).int()).abs().max().item()
        for mine, image, row in zip(found, images, draws, strict=True)
    ]
    assert max(differences) <= (op not in EXACT)


def test_images_are_those_of_timm_with_the_same_choices(timm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    images = samples().repeat(20, 1, 1, 1)
    draws = np.random.default_rng(0).random((len(images), policy_draws(A3)))
    found = apply_policy(images, draws, A3, MEAN)
    over = []  # share of an image's values that differ by more than two levels
    for mine, image, row in zip(found, images, draws, strict=True):
        over.append(((mine.int() - theirs(timm, monkeypatch, image, row).int()).abs() > 2).double().mean().item())
    assert np.mean([share == 0 for share in over]) > 0.98
    assert max(over) < 0.001  # where a histogram is spread out, a level that was rounded otherwise becomes many


@pytest.mark.parametrize("op", GEOMETRIC)
def test_the_nearest_pixel_is_that_of_pil(op: str, timm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a few points on the border between two pixels."""
    reg, noise = replace(A3, interpolation="nearest"), samples()[5]
    draws = np.array([[(TIMM.index(op) + 0.5) / len(TIMM), 0.1, 0.5, 0.2, 0.0, 0.9, 0.5, 0.5]])
    (found,) = apply_policy(noise[None], draws, reg, MEAN)
    expected = theirs(timm, monkeypatch, noise, draws[0], Image.Resampling.NEAREST)
    assert (found != expected).any(2).double().mean() < 0.01
    assert (found == torch.tensor(FILL)).all(2).double().mean() > 0.04


def test_operations_signs_and_magnitudes_are_drawn_as_by_timm() -> None:
    images, wide = 100_000, replace(A3, rand_std=4.0)
    draws = np.random.default_rng(0).random((images, policy_draws(wide)))
    turns = choose_operations(draws, wide, 100, 200)
    assert len(turns) == 2
    for ops, magnitudes in turns:
        assert_share((ops == 0).sum(), images, 0.5)
        for op, name in enumerate(TIMM, start=1):
            drawn = magnitudes[ops == op]
            assert_share(len(drawn), images, 0.5 / 15)
            if SIGNED[op]:
                assert_share((drawn > 0).sum(), (drawn != 0).sum(), 0.5)
            if name in GEOMETRIC:
                top = {"ShearX": 0.3, "ShearY": 0.3, "TranslateX": 90, "TranslateY": 45, "Rotate": 30}[name]
                level, normal = np.abs(drawn) / top * 10, NormalDist(6, 4)
                assert_share((level == 0).sum(), len(level), normal.cdf(0))
                assert_share((level == 10).sum(), len(level), 1 - normal.cdf(10))
                between = level[(level > 0) & (level < 10)]
                assert kstest(between, truncnorm(-1.5, 1, loc=6, scale=4).cdf).pvalue > 0.001
    (first, _), (second, _) = turns
    assert_share(((first > 0) & (first == second)).sum(), images, 0.25 / 15)  # drawn anew, and the same may come twice


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-32, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("std", [0.0, 0.5, 1e6])
def test_the_ends_of_the_unit_interval_have_a_magnitude(draw: float, std: float) -> None:
    reg = replace(A3, rand_std=std)
    strengths = np.array([[(op + 0.5) / len(TIMM), 0.0, draw, 0.7] * 2 for op in range(len(TIMM))])
    for ops, magnitudes in choose_operations(strengths, reg, 100, 100):
        assert ops.tolist() == list(range(1, 16))
        assert np.isfinite(magnitudes).all()
        level = magnitudes[TIMM.index("Rotate")] / 3
        assert level == pytest.approx(6 if std == 0 else max(0, min(10, 6 + std * 6.2 * (1 if draw else -1))), abs=0.3)
    images = samples()[[5] * len(TIMM)]
    assert apply_policy(images, strengths, reg, MEAN).shape == images.shape


def test_a_solarization_of_no_magnitude_changes_nothing() -> None:
    """Its threshold is 256, which is more than a byte holds."""
    none = np.array([[(TIMM.index("Solarize") + 0.5) / len(TIMM), 0.0, 0.5, 0.5] * 2] * 8)
    assert torch.equal(apply_policy(samples(), none, replace(A3, rand_magnitude=0, rand_std=0.0), MEAN), samples())
