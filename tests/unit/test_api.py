"""The public API without Ray: imports, loading, tagging in every form, and one line for a wrong argument."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import sigrl_core
import sigrl_core as sigrl
from sigrl_core.config import CalibrateConfig, Resources, RunConfig, ScaleConfig, ServeConfig, TagConfig
from sigrl_core.config.overrides import apply_overrides, config_from
from sigrl_core.corpora.table import list_table
from sigrl_core.demo import toybox
from sigrl_core.errors import ConfigError, CorpusError, ImageError, SigrlError, VocabularyError
from sigrl_core.inference import tagger as inference
from sigrl_core.inference.inputs import IMAGE_FORMS, LABEL_FORMS
from sigrl_core.inference.tagger import Tags
from tests.conftest import calibrated_checkpoint, untrained_checkpoint

pytestmark = pytest.mark.unit

LABELS = ["red circle", "sand", "a dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated_checkpoint(tmp_path_factory.mktemp("run") / "checkpoint").parent


@pytest.fixture(scope="module")
def tagger(folder: Path) -> sigrl.Tagger:
    return sigrl.load(folder, device="cpu")


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    for number, scene in enumerate(toybox.scenes("test", range(3), size=64, seed=1)):
        (folder / f"{number}.jpg").write_bytes(scene.jpeg)
    return sorted(folder.iterdir())


# ---- the package ----


def test_importing_the_package_imports_no_large_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import sigrl_core; assert sigrl_core.__version__;"
        "assert set(sigrl_core.__all__) <= set(dir(sigrl_core));"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "new -= set(sys.stdlib_module_names);"
        "assert new == {'sigrl_core'}, new;"
        "sigrl_core.SigrlError, sigrl_core.register_loss, sigrl_core.get_preset, sigrl_core.RunConfig;"
        "found = {'torch', 'ray', 'pyarrow', 'pandas', 'open_clip'} & set(sys.modules);"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_export_is_there_and_documented() -> None:
    for name in sigrl.__all__:
        assert getattr(sigrl, name).__doc__, name
    with pytest.raises(AttributeError, match="module 'sigrl_core' has no attribute 'tagg'"):
        _ = sigrl.tagg  # pyright: ignore[reportAttributeAccessIssue]
    assert (Path(sigrl_core.__file__).parent / "py.typed").exists()


# ---- tagging ----


def assert_same(found: list[Tags], expected: list[Tags]) -> None:
    """Equal labels, and scores up to the order of sums, which depends on the size of a batch."""
    assert [tags.labels for tags in found] == [tags.labels for tags in expected]
    assert [tags.scores for tags in found] == [pytest.approx(tags.scores, rel=1e-5) for tags in expected]


def test_one_image_in_every_form(tagger: sigrl.Tagger, jpegs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpegs[0].read_bytes()
    image = Image.open(io.BytesIO(data))
    monkeypatch.chdir(jpegs[0].parent)
    expected = inference.Tagger(tagger.checkpoint).tag([data])[0]
    forms = [jpegs[0], str(jpegs[0]), jpegs[0].name, f"file://{jpegs[0]}", data, image, np.asarray(image)]
    for form in forms:
        assert tagger.tag(form) == expected, form
        assert tagger.tag([form]) == [expected], form
    assert_same(tagger.tag(forms), [expected] * len(forms))


def test_many_images_in_every_container(tagger: sigrl.Tagger, jpegs: list[Path]) -> None:
    expected = [tagger.tag(path) for path in jpegs]
    assert len({tuple(tags.scores) for tags in expected}) == 3
    names = [str(path) for path in jpegs]
    batch = np.stack([np.asarray(Image.open(path)) for path in jpegs])
    for images in (jpegs, tuple(names), iter(names), pd.Series(names), pd.Index(names), np.array(names), batch):
        assert_same(tagger.tag(images), expected)
    many = tagger.tag(names * 15)  # more than one batch
    assert_same(many, expected * 15)


def test_labels_in_every_form(tagger: sigrl.Tagger, jpegs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    vocabulary = sigrl.Vocabulary(tuple(sigrl.Label(name=name) for name in LABELS))
    expected = tagger.tag(jpegs[0], vocabulary, top_k=2)
    assert len(expected.labels) == 2
    assert set(expected.labels) < set(LABELS)
    for labels in (LABELS, tuple(LABELS), pd.Series(LABELS), tmp_path / "labels.txt", str(tmp_path / "labels.txt")):
        assert tagger.tag(jpegs[0], labels=labels, top_k=2) == expected
    assert len(tagger.tag(jpegs[0]).labels) == 5


def test_an_unreadable_image_is_a_result(tagger: sigrl.Tagger, jpegs: list[Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(jpegs[0].read_bytes()[:300])
    tags = tagger.tag([jpegs[0], cut, b""])
    assert [each.error for each in tags] == ["", "truncated", "empty"]
    table = tagger.probabilities([jpegs[0], cut], labels=LABELS)
    assert table.loc[str(cut)].isna().all()
    assert table.loc[str(jpegs[0])].notna().all()


def test_probabilities_are_a_table(tagger: sigrl.Tagger, jpegs: list[Path]) -> None:
    table = tagger.probabilities([jpegs[0], jpegs[1].read_bytes(), str(jpegs[2])], LABELS)
    assert list(table.columns) == LABELS
    assert list(table.index) == [str(jpegs[0]), 1, str(jpegs[2])]
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(path).resize((48, 48))) for path in jpegs]))
    assert pixels.shape == (3, 48, 48, 3)
    assert table.to_numpy().min() >= 0
    assert table.to_numpy().max() <= 1
    best = tagger.tag(jpegs[0], LABELS, threshold=0.0)
    assert table.iloc[0].to_dict() == pytest.approx(dict(zip(best.labels, best.scores, strict=True)))
    assert tagger.probabilities(jpegs[0]).shape == (1, 66)


def test_an_uncalibrated_checkpoint_has_no_probabilities(tmp_path: Path, jpegs: list[Path]) -> None:
    tagger = sigrl.load(str(untrained_checkpoint(tmp_path / "checkpoint")))
    with pytest.raises(SigrlError, match="not calibrated, so it has no probabilities"):
        tagger.probabilities(jpegs)


# ---- wrong arguments: one line that says what was found and what is taken ----


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (3, "images: found int 3"),
        ([1, 2], "images[0]: found int 1"),
        (None, "images: found nothing"),
        ([], "images: found a list without items"),
        ({"a.jpg": 1}, "images: found a dict of str"),
        ([b"", 1.5], "images[1]: found float 1.5"),
        ([["a.jpg"]], "images[0]: found a list of str"),
        (np.zeros((4, 4, 3)), "images: found a float64 array of shape (4, 4, 3); expected a uint8 array"),
        (np.zeros((4, 4), np.uint8), "images: found a uint8 array of shape (4, 4); expected a uint8 array"),
        ([np.zeros((3, 4, 4), np.uint8)], "images[0]: found a uint8 array of shape (3, 4, 4); expected a uint8 array"),
        (np.zeros((2, 4, 4, 3)), "images[0]: found a float64 array of shape (4, 4, 3)"),
        (torch.zeros(3, 4, 4), "images: found a Tensor of shape (3, 4, 4) and type torch.float32"),
        (pd.DataFrame({"uri": ["a.jpg"]}), "images: found a DataFrame"),
        (pd.Series([1]), "images[0]: found int 1"),
    ],
    ids=str,
)
def test_wrong_images(tagger: sigrl.Tagger, images: Any, found: str) -> None:
    with pytest.raises(ConfigError) as error:
        tagger.tag(images)
    assert str(error.value).startswith(found)
    if "expected" not in found and "float64" not in found:
        assert str(error.value).endswith(f"; expected {IMAGE_FORMS}")
    assert "expected" in str(error.value)


def test_images_that_are_not_there(tagger: sigrl.Tagger, folder: Path, jpegs: list[Path]) -> None:
    with pytest.raises(SigrlError, match=r"x\.jpg: no such file or folder; check the path"):
        tagger.tag(["x.jpg"])
    with pytest.raises(SigrlError, match=r"http://a/b\.jpg: scheme http:// is not known"):
        tagger.tag("http://a/b.jpg")
    with pytest.raises(ConfigError, match=rf"images: {jpegs[0].parent} is a folder; expected an image file; sigrl.tag"):
        tagger.tag(jpegs[0].parent)
    with pytest.raises(ConfigError, match="checkpoint is a checkpoint; expected an image file"):
        tagger.tag([folder / "checkpoint"])


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (3, "labels: found int 3"),
        ([], "labels: found a list without items"),
        ([1, 2], "labels[0]: found int 1"),
        ({"dog": 1}, "labels: found a dict of str"),
    ],
    ids=str,
)
def test_wrong_labels(tagger: sigrl.Tagger, jpegs: list[Path], labels: Any, found: str) -> None:
    with pytest.raises(ConfigError) as error:
        tagger.tag(jpegs[0], labels)
    assert str(error.value) == f"{found}; expected {LABEL_FORMS}"


def test_labels_that_cannot_be_used(tagger: sigrl.Tagger, jpegs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"labels: .*/dog: no such file.*as a list, labels=\['dog'\]"):
        tagger.tag(jpegs[0], "dog")
    with pytest.raises(VocabularyError, match="listed twice: dog"):
        tagger.tag(jpegs[0], ["dog", "dog"])
    with pytest.raises(VocabularyError, match=f"{tmp_path}: cannot be read as a label list, because it is a folder"):
        tagger.tag(jpegs[0], tmp_path)


@pytest.mark.parametrize("top_k", [0, True, 1.5, "3"])
def test_wrong_top_k(tagger: sigrl.Tagger, jpegs: list[Path], top_k: Any) -> None:
    with pytest.raises(ConfigError, match=f"top_k is {top_k!r}; expected 1 or more, or None"):
        tagger.tag(jpegs[0], top_k=top_k)


@pytest.mark.parametrize("threshold", [-0.1, 2, True, "best"])
def test_wrong_threshold(tagger: sigrl.Tagger, jpegs: list[Path], threshold: Any) -> None:
    with pytest.raises(ConfigError, match=f"threshold is {threshold!r}; expected a probability in"):
        tagger.tag(jpegs[0], threshold=threshold)


def test_loading_what_is_no_checkpoint(folder: Path, jpegs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"path: found int 3; expected a checkpoint folder \(str, Path or s3://"):
        sigrl.load(3)  # type: ignore[arg-type]
    with pytest.raises(SigrlError, match="no such folder"):
        sigrl.load(tmp_path / "nothing")
    with pytest.raises(SigrlError, match="no checkpoint here"):
        sigrl.load(jpegs[0].parent)
    with pytest.raises(ConfigError, match=r"device is 'gpu' .*; expected auto, cpu, cuda or cuda:N"):
        sigrl.load(folder, device="gpu")
    assert sigrl.load(folder).device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_wrong_data(folder: Path, jpegs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="data: found int 3; expected a shard folder, a folder with a sub-f"):
        sigrl.train(3, out=out)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="data: found a list of str; expected a shard folder"):
        sigrl.preprocess(["a.jpg"], out=out)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"data: {tmp_path}/x is missing; expected a shard folder"):
        sigrl.train(tmp_path / "x", out=out)
    with pytest.raises(ConfigError, match=f"data: {jpegs[0]} is a file; expected a shard folder"):
        sigrl.evaluate(folder, jpegs[0])
    with pytest.raises(ConfigError, match="out: found int 3; expected a folder to write"):
        sigrl.train(jpegs[0].parent, out=3)  # type: ignore[arg-type]
    with pytest.raises(SigrlError, match="not the manifest of a shard folder"):
        sigrl.train(folder / "checkpoint", out=out)
    with pytest.raises(ConfigError, match=r"images: found str 'photos', but .* is a folder of images itself"):
        sigrl.preprocess(jpegs[0].parent, "photos", out=out)
    with pytest.raises(ConfigError, match="preset: found int 3; expected the name of a preset or a RunConfig"):
        sigrl.train(jpegs[0].parent, out=out, preset=3)  # type: ignore[arg-type]
    with pytest.raises(SigrlError, match="the data it was trained on is unknown"):
        sigrl.calibrate(folder)
    assert not out.exists()


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({}, "data: found a DataFrame with the columns (none), without uri and labels"),
        ({"uri": ["a"], "tags": [[]]}, "data: found a DataFrame with the columns uri, tags, without labels"),
        ({"uri": [], "labels": []}, "data: found a DataFrame with 0 rows"),
        ({"uri": ["a", 3], "labels": [["x"], []]}, "data, row 1: uri is 3; expected a path or URI"),
        ({"uri": ["a"], "labels": ["cat"]}, "data, row 0: labels is 'cat'; expected a list of names, such as ['cat']"),
        ({"uri": ["a"], "labels": [[1]]}, "data, row 0: labels is [1]; expected a list of names"),
        ({"uri": ["a"], "labels": [[]], "negatives": [4]}, "data, row 0: negatives is 4; expected a list of names"),
    ],
)
def test_a_table_that_lists_no_images(table: dict[str, list], line: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as error:
        sigrl.preprocess(pd.DataFrame(table), out=tmp_path / "out")
    assert str(error.value).startswith(line)
    assert not (tmp_path / "out").exists()


def test_rows_of_a_table() -> None:
    labels = [["b", " a"], ("c",), {"e", "d"}, np.array(["f"]), None, float("nan"), []]
    table = pd.DataFrame({"uri": [f"{n}.jpg" for n in range(6)] + [Path("6.jpg")], "labels": labels})
    rows = list_table(table)
    assert [row.uri for row in rows] == [f"{n}.jpg" for n in range(7)]
    assert [row.labels for row in rows] == [("b", "a"), ("c",), ("d", "e"), ("f",), None, None, ()]
    assert list_table(table.assign(negatives=[["x"]] * 7))[0].negatives == ("x",)


# ---- keyword arguments as configuration ----


def test_overrides() -> None:
    run, scale, resources = apply_overrides(
        RunConfig(),
        ScaleConfig(),
        Resources(num_workers=2),
        {
            "epochs": 3,
            "lr": 1,
            "loss": {"kind": "bce"},
            "graph.kind": "none",
            "keep": 2,
            "gpus_per_worker": 1,
            "pretrained": Path("a"),
        },
    )
    assert (run.training.epochs, run.optim.lr, run.loss.kind, run.graph.kind) == (3, 1.0, "bce", "none")
    assert (scale.keep, run.backbone.pretrained) == (2, "a")
    assert resources == Resources(num_workers=2, gpus_per_worker=1.0)
    assert run.loss.distillation == RunConfig().loss.distillation


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ({"epoch": 3}, "epoch is no field of RunConfig, ScaleConfig or Resources; did you mean epochs?"),
        ({"kind": "bce"}, "kind is a field of graph and loss; give graph={'kind': ...} or loss={'kind': ...}"),
        ({"epochs": "3"}, "train: training.epochs is '3'; expected int"),
        ({"epochs": 0}, "training.epochs is 0; expected 1 or more"),
        ({"loss": "bce"}, "loss is 'bce'; expected a dict of its fields, such as {'kind': ...}"),
        ({"loss": {"kinds": 1}}, "train: unknown key loss.kinds; known are kind, "),
        ({"loss.kinds": 1}, "train: unknown key loss.kinds; known are kind, "),
        ({"scale": {"gpu": 1}}, "train: unknown key scale.gpu; known are "),
    ],
)
def test_wrong_overrides(override: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        apply_overrides(RunConfig(), ScaleConfig(), Resources(), override)
    assert str(error.value).startswith(line)


def test_options_are_fields_of_a_configuration(tmp_path: Path) -> None:
    made = config_from(TagConfig, {"threshold": "calibrated", "top_k": 3}, checkpoint="c", images="i", out="o")
    assert (made.threshold, made.top_k) == ("calibrated", 3)
    assert config_from(ServeConfig, {"models": {"a": "b"}}, checkpoint="c").models == {"a": "b"}
    assert config_from(CalibrateConfig, {"min_examples": 2}, checkpoint="c", data="d").min_examples == 2
    with pytest.raises(ConfigError, match=r"methd is no option here; did you mean method\?; options are "):
        config_from(CalibrateConfig, {"methd": "platt"}, checkpoint="c", data="d")
    with pytest.raises(ConfigError, match="checkpoint is no option here"):
        config_from(CalibrateConfig, {"checkpoint": "x"}, checkpoint="c", data="d")
    with pytest.raises(ConfigError, match="method is 'bayes'; expected one of 'platt', 'isotonic'"):
        config_from(CalibrateConfig, {"method": "bayes"}, checkpoint="c", data="d")


def test_image_errors_stay_results_of_the_base_class(tagger: sigrl.Tagger) -> None:
    assert inference.Tagger(tagger.checkpoint).tag([ImageError("empty")])[0].error == "empty"
