"""What a single image waits for: nothing that it does not need is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch

from tests import PATIENCE, ROOT
from tests.images import encode, photo
from trainer.learning.model import build_model
from trainer.model_card import METADATA_KEY, ModelCard
from trainer.recipes.config import ModelConfig

SLOW_TO_IMPORT = (
    "awscrt", "boto3", "datasets", "matplotlib", "numba", "pyarrow", "scipy", "sklearn", "sympy", "torch._dynamo",
)  # fmt: skip
PROGRAM = f"""
import sys
from trainer.predict.__main__ import main
assert main(sys.argv[1:]) == 0
print([name for name in {SLOW_TO_IMPORT} if name in sys.modules])
import torchvision
print(torchvision.ops.roi_align.__module__, sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu"))
import torch._dynamo.utils
print(torch._dynamo.utils.is_compile_supported("cpu"), torch._dynamo.utils.counters is not None)
"""


@pytest.mark.slow
def test_one_image_waits_for_no_import_that_it_does_not_need_and_the_compiler_is_whole_for_who_asks_later(
    tmp_path: Path,
) -> None:
    network = "shufflenet_v2_x0_5"
    model = build_model(ModelConfig(name=network, num_classes=2))
    card = ModelCard(
        network=network, classes=("a", "b"), mean=(0.5,) * 3, std=(0.5,) * 3, val_resize=32, val_crop=32
    )  # fmt: skip
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors", {METADATA_KEY: card.to_text()})
    (tmp_path / "cat.jpg").write_bytes(encode(photo(1)))
    options = ["--model", str(tmp_path / "w.safetensors"), "--store", str(tmp_path), "--scratch", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "cat.jpg"), *options],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    *_, imported, module_and_answer, later = ended.stdout.splitlines()
    assert imported == "[]"
    assert module_and_answer == "torchvision.ops.roi_align True"
    assert later == "True True"
