"""Tables that plug-ins extend: decorators, modules, entry points, and what a wrong one gets for an answer."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sigrl_core import plugins
from sigrl_core.config import GraphConfig, TagConfig
from sigrl_core.data.dataset import ShardDataset
from sigrl_core.errors import ConfigError, CorpusError
from sigrl_core.evaluation.evaluator import Evaluator, evaluate
from sigrl_core.evaluation.inputs import iterate_batches
from sigrl_core.plugins import BACKBONES, CORPORA, ENDPOINTS, GRAPHS, LOSSES, METRICS, Registry
from sigrl_core.training.validation import ValidationTask, validate
from tests.conftest import tagger_of, vocabulary_of, write_shards

pytestmark = pytest.mark.unit

TABLES = [LOSSES, GRAPHS, CORPORA, BACKBONES, METRICS, ENDPOINTS]


@pytest.fixture(autouse=True)
def _tables_as_before() -> Iterator[None]:
    before = [dict(table._entries) for table in TABLES]
    yield
    for table, entries in zip(TABLES, before, strict=True):
        table._entries.clear()
        table._entries.update(entries)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.noun)
def test_every_built_in_entry_is_there(table: Registry) -> None:
    for name in table:
        assert callable(table[name])
        assert table.get(name) is table[name]
    assert table.registered() == []


def test_names_are_listed_and_checked_without_torch() -> None:
    code = """
        import sys
        from sigrl_core import plugins
        from sigrl_core.config import GraphConfig
        GraphConfig(kind="nearest")
        assert "ranking" in plugins.LOSSES and len(plugins.CORPORA) == 31, list(plugins.CORPORA)
        plugins.CORPORA["jsonl"]
        found = {"torch", "ray", "open_clip"} & set(sys.modules)
        assert not found, found
    """
    subprocess.run([sys.executable, "-c", "\n".join(line.strip() for line in code.splitlines())], check=True)


def test_a_registered_function_is_used_by_its_name() -> None:
    @plugins.register_graph("ring")
    def ring(labels_CD, known_CC, config):
        return labels_CD.new_ones(len(labels_CD), len(labels_CD))

    assert GRAPHS["ring"] is ring
    assert GRAPHS.registered() == ["ring"]
    assert GraphConfig(kind="ring").kind == "ring"
    assert plugins.local_entries() == {"graph": {"ring": ring}}

    @plugins.register_corpus("sheet")
    def sheet(images, annotations=None): ...

    assert TagConfig(checkpoint="c", images="i", out="o", corpus="sheet").corpus == "sheet"


def test_a_registered_metric_is_in_validation_and_in_evaluation(tmp_path: Path) -> None:
    @plugins.register_metric("share_present")
    def share_present(scores_NC: np.ndarray, states_NC: np.ndarray) -> float:
        assert scores_NC.shape == states_NC.shape
        return (states_NC > 0).mean()

    vocabulary = vocabulary_of(["red", "green"], ["blue"])
    states_NC = np.array([[1, 1, -1], [1, -1, 1], [-1, 1, 1], [1, 1, 1]], np.int8)
    folder, tagger = write_shards(tmp_path / "shards", vocabulary, states_NC), tagger_of(vocabulary)
    rows = evaluate(Evaluator(tagger, {}), folder).metrics["rows"]
    assert {row["name"]: row["gzsl"]["share_present"] for row in rows} == dict.fromkeys(
        ("sigrl", "sigrl_independent", "clip_global", "clip_global_local"), 9 / 12
    )
    assert rows[0]["seen"]["share_present"] == 6 / 8
    assert isinstance(rows[0]["seen"]["share_present"], float)
    seen = ValidationTask(tagger.encode_labels(vocabulary.subset("seen")), [0, 1])
    found = validate(tagger.model, iterate_batches(ShardDataset(folder), 48), {"": seen})
    assert set(found) == {"validation/map", "validation/share_present"}
    assert found["validation/share_present"] == 6 / 8


def test_a_later_definition_of_the_same_module_replaces_the_earlier() -> None:
    """As a notebook's cell that runs twice."""
    plugins.register_loss("squared")(lambda *_: 1)
    plugins.register_loss("squared")(lambda *_: 2)
    assert LOSSES["squared"]() == 2


def test_wrong_registrations_are_refused() -> None:
    def mine(*_): ...

    with pytest.raises(ConfigError, match="register_loss: the name 'ranking' is built in; choose another name"):
        plugins.register_loss("ranking")(mine)
    plugins.register_loss("squared")(mine)

    def theirs(*_): ...

    theirs.__module__ = "their_losses"
    with pytest.raises(ConfigError, match=f"the name 'squared' is registered by {__name__}"):
        plugins.register_loss("squared")(theirs)
    with pytest.raises(ConfigError, match=r"register_metric: found <function .*; expected a name"):
        plugins.register_metric(mine)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="register_metric: 'f1' is 3; expected a function"):
        plugins.register_metric("f1")(3)  # type: ignore[type-var]


def test_an_unknown_name_lists_the_known_ones() -> None:
    plugins.register_loss("squared")(lambda *_: None)
    known = "ranking, pairwise, .*, ll_r, squared, or a name that a plug-in registers"
    with pytest.raises(ConfigError, match=rf"loss.kind is 'cosine'; expected one of {known} \(--plugin MODULE\)"):
        LOSSES["cosine"]
    with pytest.raises(CorpusError, match="corpus is 'zip'; expected one of folder, files, "):
        CORPORA["zip"]
    with pytest.raises(
        ConfigError, match=r"corpus is 'coco'; expected one of files, shards, webdataset, hugging_face$"
    ):
        TagConfig(checkpoint="c", images="i", out="o", corpus="coco")


def test_a_module_in_the_current_folder_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_of_this_test.py").write_text(
        "from sigrl_core.plugins import register_loss\n\n\n@register_loss('cubed')\ndef cubed(*_): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    importlib.invalidate_caches()
    plugins.load(["plugin_of_this_test"])
    plugins.load(["plugin_of_this_test"])
    assert LOSSES["cubed"].__module__ == "plugin_of_this_test"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "ModuleNotFoundError: No module named 'broken_plugin'"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("def f(:", "SyntaxError: "),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(
    text: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "broken_plugin.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"plug-in module 'broken_plugin' cannot be imported \({reason}"):
        plugins.load(["broken_plugin"])


def entry_point(folder: Path, text: str) -> None:
    """A package, as pip would install it, with an entry point."""
    info = folder / "their_losses-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-losses\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sigrl.plugins]\nlosses = their_losses\n")
    (folder / "their_losses.py").write_text(text)


def test_an_installed_package_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_point(
        tmp_path, "from sigrl_core.plugins import register_loss\n\n\n@register_loss('theirs')\ndef theirs(*_): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_entry_points_loaded", False)
    assert LOSSES["bce"]
    assert "their_losses" not in sys.modules  # nothing is loaded for a built-in name
    assert LOSSES["theirs"].__module__ == "their_losses"
    assert LOSSES.registered() == ["theirs"]
    assert plugins.local_entries() == {}  # every process finds it by itself


def test_an_installed_package_that_is_broken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_point(tmp_path, "raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_entry_points_loaded", False)
    monkeypatch.delitem(sys.modules, "their_losses", raising=False)
    with pytest.raises(
        ConfigError, match=r"plug-in 'their_losses' of their-losses cannot be imported \(RuntimeError: no lic"
    ):
        LOSSES["theirs"]


def test_received_entries_are_not_sent_on_and_are_replaced() -> None:
    with plugins.registering("received"):
        plugins.register_loss("sent")(lambda *_: 1)
    assert plugins.local_entries() == {}
    plugins.receive({"loss": {"sent": lambda *_: 2}})
    assert LOSSES["sent"]() == 2
    assert plugins.local_entries() == {}


def test_the_driver_is_asked_for_unknown_and_received_names(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = iter([lambda *_: 1, lambda *_: 2])
    monkeypatch.setattr(plugins, "remote_source", lambda: plugins.receive({"loss": {"sent": next(versions)}}))
    assert LOSSES["sent"]() == 1
    assert LOSSES["sent"]() == 2
    assert LOSSES["ranking"]
