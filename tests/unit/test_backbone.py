"""The backbone: what open_clip computes, cut in two; weights that are here, and words for those that are not."""

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from sigrl_core.config import BackboneConfig
from sigrl_core.errors import CheckpointError, ConfigError, WeightsError
from sigrl_core.model.backbone import Backbone, load_backbone, load_backbone_folder
from sigrl_core.model.checkpoint import save_clip

pytestmark = pytest.mark.unit

SMALL = "ViT-S-32-alt"
"""The smallest ViT that open_clip describes."""


def random_backbone(name: str, frozen_blocks: int = 1, **fields: Any) -> Backbone:
    torch.manual_seed(0)
    config = BackboneConfig(name=name, pretrained="random", frozen_blocks=frozen_blocks, **fields)
    return load_backbone(config).eval()


def images(backbone: Backbone, count: int = 3) -> Tensor:
    size = (count, backbone.image_size, backbone.image_size, 3)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))


@pytest.fixture(scope="module")
def toybox() -> Backbone:
    return random_backbone("toybox-vit")


@pytest.fixture(scope="module")
def small() -> Backbone:
    return random_backbone(SMALL, 10)


@pytest.fixture(params=["toybox-vit", SMALL])
def backbone(request: pytest.FixtureRequest, toybox: Backbone, small: Backbone) -> Backbone:
    return {"toybox-vit": toybox, SMALL: small}[request.param]


# ---- what it computes ----


@torch.no_grad()
def test_the_class_token_is_open_clips(backbone: Backbone) -> None:
    pixels = images(backbone)
    cls_BD, patches_BPD = backbone(pixels)
    mean, std = (np.array(values, np.float32) for values in (backbone.mean, backbone.std))
    normalised = torch.from_numpy(((pixels.numpy() / np.float32(255) - mean) / std).transpose(0, 3, 1, 2).copy())
    torch.testing.assert_close(backbone.normalise(pixels), normalised, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cls_BD, backbone.clip.encode_image(normalised), rtol=1e-4, atol=1e-4)
    assert cls_BD.shape == (3, backbone.dim)
    grid = backbone.image_size // {"toybox-vit": 8, SMALL: 32}[backbone.description["name"]]
    assert patches_BPD.shape == (3, grid**2, backbone.dim)


@torch.no_grad()
def test_patch_tokens_are_normed_and_projected_as_the_class_token_is(backbone: Backbone) -> None:
    pixels, visual = images(backbone), backbone.clip.visual
    _, patches_BPD = backbone(pixels)
    last = visual.forward_intermediates(
        backbone.normalise(pixels), indices=1, normalize_intermediates=True, output_fmt="NLC"
    )
    torch.testing.assert_close(patches_BPD, last["image_intermediates"][0] @ visual.proj, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_seam_changes_no_result(toybox: Backbone, tmp_path: Path) -> None:
    save_clip(tmp_path / "clip", toybox)
    pixels = images(toybox)
    expected = toybox(pixels)
    for frozen_blocks in (0, 2, 99):
        other = load_backbone_folder(tmp_path / "clip", BackboneConfig(frozen_blocks=frozen_blocks)).eval()
        assert other.frozen_blocks == min(frozen_blocks, 2)
        assert all(torch.equal(*pair) for pair in zip(other(pixels), expected, strict=True))
        assert all(
            torch.equal(*pair)
            for pair in zip(other.make_teacher()(other.forward_frozen(pixels)), expected, strict=True)
        )


@pytest.mark.parametrize("frozen_blocks", [0, 1, 2])
def test_the_teacher_stays_what_the_student_was(frozen_blocks: int) -> None:
    student = random_backbone("toybox-vit", frozen_blocks)
    teacher = student.make_teacher()
    tokens = student.forward_frozen(images(student))
    before = teacher(tokens)
    for ours, theirs in zip(student.forward_head(tokens), before, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-5, atol=2e-6)  # trainable ones are rounded otherwise
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trainable, lr=0.1)
    for _ in range(2):
        student.forward_head(tokens)[0].square().sum().backward()
        optimiser.step()
    assert all(parameter.grad is not None for parameter in trainable)
    assert not torch.allclose(student.forward_head(tokens)[0], before[0], atol=1e-2)
    assert all(torch.equal(*pair) for pair in zip(teacher(tokens), before, strict=True))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("name", ["toybox-vit", SMALL])
def test_patches_that_attend_by_values(name: str) -> None:
    """Beside the attention written out head by head; the class token stays as trained."""
    plain, surgical = random_backbone(name, 99), random_backbone(name, 99, patch_attention="value-value")
    assert (plain.split_block, surgical.split_block) == (plain.num_blocks, plain.num_blocks - 1)
    block = surgical.clip.visual.transformer.resblocks[-1]
    with torch.no_grad():
        tokens = surgical.forward_frozen(images(surgical, 2))
        glob, patches = surgical.forward_head(tokens)
        expected_glob, trained_patches = plain(images(plain, 2))
        W, heads = tokens.shape[2], block.attn.num_heads
        values = block.ln_1(tokens) @ block.attn.in_proj_weight[2 * W :].t() + block.attn.in_proj_bias[2 * W :]
        heard = []
        for V in values.split(W // heads, dim=2):
            heard.append((V @ V.transpose(1, 2) / (W // heads) ** 0.5).softmax(-1) @ V)
        after = tokens + torch.cat(heard, 2) @ block.attn.out_proj.weight.t() + block.attn.out_proj.bias
        after = after + block.mlp(block.ln_2(after))
        expected = surgical.clip.visual.ln_post(after) @ surgical.clip.visual.proj
    torch.testing.assert_close(glob, expected_glob, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(patches, expected[:, 1:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(patches, trained_patches, atol=1e-3)


def test_a_teacher_attends_as_its_student_does() -> None:
    student = random_backbone("toybox-vit", 99, patch_attention="value-value")
    tokens = student.forward_frozen(images(student))
    for ours, theirs in zip(student.forward_head(tokens), student.make_teacher()(tokens), strict=True):
        torch.testing.assert_close(ours.detach(), theirs)
    assert not any(p.requires_grad for p in student.clip.visual.transformer.parameters())


def test_what_trains_lies_above_the_seam(small: Backbone) -> None:
    trainable = {name for name, parameter in small.named_parameters() if parameter.requires_grad}
    blocks = {name.split("resblocks.")[1].split(".")[0] for name in trainable if "resblocks" in name}
    assert blocks == {"10", "11"}
    others = {name for name in trainable if "resblocks" not in name}
    assert others == {f"clip.visual.{name}" for name in ("proj", "ln_post.weight", "ln_post.bias")}
    depths = {name: small.depth_of(f"backbone.{name}") for name, _ in small.named_parameters()}
    assert depths["clip.visual.proj"] == depths["clip.visual.ln_post.weight"] == small.num_blocks + 1 == 13
    assert depths["clip.visual.transformer.resblocks.10.attn.in_proj_weight"] == 11
    assert depths["clip.visual.conv1.weight"] == depths["clip.visual.positional_embedding"] == 0
    assert not small.forward_frozen(images(small)).requires_grad


@torch.no_grad()
def test_statistics_are_those_of_the_weights(toybox: Backbone, tmp_path: Path) -> None:
    assert toybox.mean == open_clip.OPENAI_DATASET_MEAN
    other = Backbone(
        toybox.clip, {**toybox.description, "mean": [0.5, 0.25, 0.0], "std": [0.5, 0.5, 2.0]}, BackboneConfig()
    )
    save_clip(tmp_path / "clip", other)
    loaded = load_backbone_folder(tmp_path / "clip", BackboneConfig()).eval()
    white = torch.full((1, 48, 48, 3), 255, dtype=torch.uint8)
    torch.testing.assert_close(loaded.normalise(white)[0, :, 0, 0], torch.tensor([1.0, 1.5, 0.5]))
    assert not torch.allclose(loaded(images(toybox))[0], toybox(images(toybox))[0], atol=1e-2)


# ---- texts ----


def test_prompts_of_a_label_are_averaged(backbone: Backbone) -> None:
    prompts = [["a red star", "red star!"], ["sand"], ["a cross", "cross", "a large cross"]]
    labels_CD = backbone.encode_text(prompts)
    assert labels_CD.shape == (3, backbone.dim)
    torch.testing.assert_close(labels_CD.norm(dim=-1), torch.ones(3))
    with torch.no_grad():
        for texts, label_D in zip(prompts, labels_CD, strict=True):
            tokens = open_clip.tokenize(texts, context_length=backbone.clip.context_length)
            single = normalize(backbone.clip.encode_text(tokens), dim=-1)
            torch.testing.assert_close(label_D, normalize(single.mean(0), dim=-1), rtol=1e-4, atol=1e-5)


def test_many_texts_few_and_none(toybox: Backbone) -> None:
    prompts = [[f"label number {number}"] for number in range(300)]
    labels_CD = toybox.encode_text(prompts)
    assert labels_CD.shape == (300, 128)
    torch.testing.assert_close(labels_CD[290], toybox.encode_text([prompts[290]])[0], rtol=1e-4, atol=1e-5)
    assert toybox.encode_text([]).shape == (0, 128)
    long = toybox.encode_text([["word " * 500], [""], ["海星 ☆"]])
    assert torch.isfinite(long).all()


# ---- where it comes from ----


def test_random_weights_are_made_by_the_generator() -> None:
    first, again = (random_backbone("toybox-vit").state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"backbone\.name 'ViT-B-17' is unknown") as caught:
        load_backbone(BackboneConfig(name="ViT-B-17", pretrained="random"))
    known = str(caught.value).split("known are ")[1].split(", ")
    assert {"toybox-vit", "ViT-B-16", "ViT-L-14", "ViT-B-16-quickgelu"} <= set(known)
    assert not {"RN50", "ViT-B-16-SigLIP", "ViT-L-14-worldwide", "ViT-L-14-CLIPA"} & set(known)


@pytest.mark.parametrize(
    "name", ["RN50", "convnext_base", "ViT-B-16-SigLIP", "ViT-L-14-worldwide", "ViT-L-14-CLIPA", "roberta-ViT-B-32"]
)
def test_other_towers_are_refused_before_they_are_built(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those whose texts another tokenizer reads: they would load, and understand nothing."""
    built: list[object] = []
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: built.append(_))
    with pytest.raises(ConfigError, match=f"'{name}' is not a ViT with a class token .*ViT-B-16"):
        load_backbone(BackboneConfig(name=name, pretrained="random"))
    assert built == []


def test_a_resnet_in_a_checkpoint_is_refused_too() -> None:
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 32},  # type: ignore[arg-type]
        text_cfg={"width": 16, "heads": 2, "layers": 1},  # type: ignore[arg-type]
    )
    with pytest.raises(ConfigError, match="'RN' is not a ViT with a class token"):
        Backbone(clip, {"name": "RN"}, BackboneConfig())


@pytest.mark.parametrize(
    ("name", "tag", "file", "flags"),
    [
        ("ViT-B-16", "openai", "vit_base_patch16_clip_224.openai", "--backbone.name ViT-B-16-quickgelu "),
        ("ViT-B-16-quickgelu", "openai", "vit_base_patch16_clip_224.openai", ""),
        ("ViT-B-32", "laion2b_s34b_b79k", "CLIP-ViT-B-32-laion2B-s34B-b79K", ""),
    ],
)
def test_weights_that_cannot_be_fetched_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, tag: str, file: str, flags: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))  # what was fetched before is not here
    lookups: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: lookups.append(_))
    with pytest.raises(WeightsError, match=f"weights '{tag}' of {name} cannot be fetched") as caught:
        load_backbone(BackboneConfig(name=name, pretrained=tag))
    assert lookups == []  # no connection is attempted
    message = str(caught.value)
    assert "download open_clip_model.safetensors of huggingface.co/" in message
    assert file in message
    assert f"pass its path: {flags}--backbone.pretrained /path/to/file" in message
    assert "\n" not in message


def test_an_unknown_tag_lists_the_known_ones() -> None:
    with pytest.raises(WeightsError, match=r"'opnai' is neither a file, .* tags are openai, laion400m_e31"):
        load_backbone(BackboneConfig(name="ViT-B-16", pretrained="opnai"))
    with pytest.raises(WeightsError, match="tags are none; 'random' makes random weights"):
        load_backbone(BackboneConfig(name=SMALL, pretrained="runs/missing"))
    with pytest.raises(WeightsError, match="'toybox-vit' has no published weights 'openai'"):
        load_backbone(BackboneConfig(name="toybox-vit", pretrained="openai"))


@pytest.fixture(scope="module")
def weights(small: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the small model's weights as people have them; 350 MB, so gone afterwards."""
    folder = tmp_path_factory.mktemp("weights")
    state: dict[str, Any] = small.clip.state_dict()
    torch.save(state, folder / "plain.pt")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, folder / "run.pt"
    )
    save_file(state, folder / "open_clip_model.safetensors")
    yield folder
    shutil.rmtree(folder)


@torch.no_grad()
@pytest.mark.parametrize("file", ["plain.pt", "run.pt", "open_clip_model.safetensors"])
def test_a_weights_file_is_loaded(small: Backbone, weights: Path, file: str) -> None:
    torch.manual_seed(1)
    loaded = load_backbone(BackboneConfig(name=SMALL, pretrained=str(weights / file), frozen_blocks=99)).eval()
    assert torch.equal(loaded(images(small))[0], small(images(small))[0])
    assert loaded.description == small.description
    assert not [name for name, p in loaded.named_parameters() if p.requires_grad and "resblocks" in name]


def test_a_weights_file_of_something_else_is_refused(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name, file in (
        ("ViT-S-32", weights / "open_clip_model.safetensors"),
        (SMALL, tmp_path / "text.pt"),
        (SMALL, tmp_path / "text.safetensors"),
        (SMALL, tmp_path / "other.safetensors"),
    ):
        with pytest.raises(WeightsError, match=f"{file}: not weights of {name} .*; give a file") as caught:
            load_backbone(BackboneConfig(name=name, pretrained=str(file)))
        assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_checkpoint_is_refused(toybox: Backbone, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no backbone\.json in it; expected a checkpoint folder"):
        load_backbone(BackboneConfig(name="toybox-vit", pretrained=str(tmp_path)))
    save_clip(tmp_path / "clip", toybox)
    config = BackboneConfig(name="ViT-B-16", pretrained=str(tmp_path / "clip"))  # the folder knows its architecture
    assert load_backbone(config).description == toybox.description
    for name, content in (("weights.safetensors", "x"), ("backbone.json", json.dumps({"name": "toybox-vit"}))):
        (tmp_path / "clip" / name).write_text(content)
        with pytest.raises(CheckpointError, match=r"backbone cannot be loaded .*; copy or make the checkpoint again"):
            load_backbone(config)
