"""A process that tags imports neither torch._dynamo nor timm, and both work afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import REPOSITORY, untrained_checkpoint

pytestmark = pytest.mark.unit

TAGS = """
import sys
from sigrl_core.inference.tagger import Tagger
with open(sys.argv[2], "rb") as file:
    (tags,) = Tagger.load(sys.argv[1]).tag([file.read()])
assert tags.labels
heavy = ["torch._dynamo", "timm", "sympy", "sklearn", "optuna", "tensorboard", "scipy", "matplotlib", "ray", "pandas"]
assert not [name for name in heavy if name in sys.modules], [name for name in heavy if name in sys.modules]
import timm, torch, torchvision, torch._dynamo
assert torch._dynamo.utils.is_compile_supported("cpu") in (True, False)
assert torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 3, 3]]), 1).shape == (1, 1, 1, 1)
assert torch.compile(torch.sin) and timm.list_models("vit_base_patch16_224")
"""
EARLIER = """
import torch._dynamo, timm
from sigrl_core.model.lean_import import lean_import
with lean_import():
    import open_clip, sys
    assert sys.modules["timm"] is timm and sys.modules["torch._dynamo"] is torch._dynamo
assert sys.modules["timm"] is timm and sys.modules["torch._dynamo"] is torch._dynamo
"""
DEFERRED = """
import sys
from sigrl_core.model.lean_import import lean_import
with lean_import():
    import torch
    first = sys.modules["torch._dynamo"]
    assert callable(first.disable)  # another attribute than the one that torchvision reads: the module is imported
    assert sys.modules["torch._dynamo"] is not first
import torch._dynamo
assert torch._dynamo.disable is first.disable
"""


def run(script: str, *arguments: object) -> None:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr


def test_a_process_that_tags(encoded: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(encoded(Image.new("RGB", (60, 40), "red")))
    run(TAGS, untrained_checkpoint(tmp_path / "checkpoint"), tmp_path / "image.jpg")


def test_packages_that_are_there_already_stay() -> None:
    run(EARLIER)


def test_another_attribute_imports_the_module() -> None:
    run(DEFERRED)
