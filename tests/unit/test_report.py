"""The report: all sections, and unusual evaluations."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sigrl_core.config import CalibrateConfig
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import ShardError
from sigrl_core.evaluation.evaluator import Evaluation, Evaluator, evaluate
from sigrl_core.inference.tagger import Tagger
from sigrl_core.labels.edges import LabelEdges
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.model.calibration import fit_calibration
from sigrl_core.report.charts import ticks
from sigrl_core.report.evaluation import write_report
from sigrl_core.report.headline import print_table
from sigrl_core.report.label_graph import SIZE, layout, spread
from tests.conftest import random_states, tagger_of, vocabulary_of, write_shards

pytestmark = pytest.mark.unit

ATTACK = '<script>document.title="owned"</script><img src=x onerror=alert(1)>'
HISTORY = [
    {
        "epoch": epoch,
        "train/loss": 3.0 / epoch,
        "train/ranking": 2.9 / epoch,
        "train/distillation": 0.1 / epoch,
        "train/seconds": 12.0,
        "train/data_wait_s": 0.5,
        "validation/map": 0.3 + 0.1 * epoch,
        "selection": 0.3 + 0.1 * epoch,
    }
    for epoch in (1, 2, 3)
]


def example(
    root: Path, vocabulary: Vocabulary, states_NC: np.ndarray, compare: bool = False, reconstructs: bool = True
) -> tuple[Evaluation, ShardFolder, Tagger]:
    """Returns the arguments of write_report, measured by a real model on real shards."""
    folder = write_shards(root / "shards of the test", vocabulary, states_NC)
    tagger = tagger_of(vocabulary, reconstructs)
    others = {"mkt_style": tagger_of(vocabulary, reconstructs=False)} if compare else {}
    return evaluate(Evaluator(tagger, others), folder), folder, tagger


def page_of(root: Path, *arguments, history: Sequence[dict] = (), **options) -> str:
    write_report(*example(root, *arguments, **options), list(history), str(root / "out"))
    return (root / "out" / "report.html").read_text(encoding="utf-8")


def rows_of(page: str) -> list[str]:
    body = page.split('class="headline"')[1].split("<tbody>")[1].split("</tbody>")[0]
    return re.findall(r'<th scope="row"><span class="name">(.*?)</span>', body)


COLOURS = vocabulary_of(["red", "green & blue", ATTACK, "black"], ["white", "grey"])


def test_every_section_is_there(tmp_path: Path) -> None:
    page = page_of(tmp_path, COLOURS, random_states(12, 6), compare=True, history=HISTORY)
    assert rows_of(page) == ["SigRL", "SigRL, any vocabulary", "MKT-style", "CLIP, global", "CLIP, global + local"]
    assert page.count('role="img"') == 4 + 1 + 1  # training, precision and recall, label graph
    assert page.count('alt="Image ') == 12
    assert page.count('alt="Input of the model: ') == 4
    assert page.count('alt="Where ') == 4 * 3  # the best labels of each
    assert page.count('src="data:image/jpeg;base64,') == 12 + 4 + 4 * 3
    assert page.count('class="mark"') == page.count('class="track"') == 6
    assert "scored with the 2 unseen labels only" in page
    assert "scored with all 6 labels, measured on the unseen ones" in page
    assert COLOURS.hash in page
    assert "runs/a &amp; b" in page


def test_what_comes_from_outside_is_escaped_and_nothing_is_fetched(tmp_path: Path) -> None:
    page = page_of(tmp_path, COLOURS, random_states(3, 6), history=HISTORY)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page
    assert "green &amp; blue" in page
    assert not re.search(r"""\b(?:src|href)=["'](?!data:|#)|url\(|@import""", page)


def test_the_same_evaluation_gives_the_same_bytes(tmp_path: Path) -> None:
    pieces = example(tmp_path, COLOURS, random_states(7, 6))
    for out in ("a", "b"):
        write_report(*pieces, HISTORY, str(tmp_path / out))
    assert (tmp_path / "a/report.html").read_bytes() == (tmp_path / "b/report.html").read_bytes()


def test_without_unseen_labels_nothing_speaks_of_them(tmp_path: Path) -> None:
    page = page_of(tmp_path, vocabulary_of(["red", "green", "blue"]), random_states(4, 3))
    assert rows_of(page) == ["SigRL", "SigRL, any vocabulary", "CLIP, global", "CLIP, global + local"]
    headline = page.split('id="headline"')[1].split("</section>")[0]
    assert "ZSL)" not in headline.replace("GZSL", "")
    assert "No training history" in page


@pytest.mark.parametrize("labels", [1, 2, 5])
def test_one_image_and_few_labels(tmp_path: Path, labels: int) -> None:
    vocabulary = vocabulary_of([f"label {c}" for c in range(labels)])
    page = page_of(tmp_path, vocabulary, np.ones((1, labels), np.int8), history=HISTORY[:1])
    assert page.count('alt="Image ') == 1
    assert page.count("<rect") == labels
    assert "nan" not in page.split("<main>")[1]


def test_a_measure_without_a_number_is_a_dash(tmp_path: Path) -> None:
    evaluation, folder, tagger = example(tmp_path, COLOURS, np.full((3, 6), -1, np.int8))
    assert math.isnan(evaluation.metrics["rows"][0]["gzsl"]["map"])
    write_report(evaluation, folder, tagger, [{**HISTORY[0], "validation/map": math.nan}], str(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert '<td class="first">–</td>' in page
    assert "No label occurs in these images" in page
    assert "True: none" in page
    assert "nan" not in page.split("<main>")[1]
    assert "–" in print_table(evaluation.metrics)


def test_tags_are_judged_by_what_is_known(tmp_path: Path) -> None:
    states_NC = np.array([[1, -1, 0]], np.int8)
    page = page_of(tmp_path, vocabulary_of(["present", "absent", "unknown"]), states_NC)
    judged = re.findall(
        r'<li class="(\w+)"><span aria-hidden="true">(.)</span>.*?<span class="name">(\w+)</span>', page
    )
    assert sorted(judged) == [("right", "✓", "present"), ("unknown", "?", "unknown"), ("wrong", "✗", "absent")]


def test_many_labels_are_thinned_out(tmp_path: Path) -> None:
    vocabulary = vocabulary_of(
        [f"seen {c}" for c in range(90)], [f"a rather long name of an unseen label {c}" for c in range(30)]
    )
    page = page_of(tmp_path, vocabulary, random_states(10, 120))
    assert page.count('class="track"') == 80
    assert "The 40 best of 120" in page
    assert page.count('<g class="seen">') == 50
    assert page.count('<g class="unseen">') == 30
    assert "Of 120 labels the 80 that occur most often" in page


def test_a_model_without_a_label_graph_shows_its_texts(tmp_path: Path) -> None:
    page = page_of(tmp_path, COLOURS, random_states(5, 6), reconstructs=False)
    assert "this model has no label graph" in page


@pytest.mark.parametrize(
    ("graph", "source"),
    [
        ({"kind": "nearest", "neighbours": 2}, "largest edge to the nearest texts"),
        ({"kind": "cooccurrence"}, "largest edge by co-occurrence"),
        ({"kind": "listed", "edges": "gone.json"}, "largest edge of the list"),
        ({"propagation": True}, "largest learned edge"),
    ],
    ids=["nearest", "cooccurrence", "listed", "propagation"],
)
def test_the_label_graph_is_drawn_as_it_is(graph: dict[str, Any], source: str, tmp_path: Path) -> None:
    """Red attends to black alone; the edges that a model has are drawn."""
    edges = LabelEdges({("red" if name == "black" else "black", name): 1.0 for name in COLOURS.names})
    tagger = tagger_of(COLOURS, known=None if graph.get("kind") == "nearest" else edges, **graph)
    if tagger.model.head.propagates:
        with torch.no_grad():
            tagger.model.head.propagation.edges[0, 3] = 2.5
    folder = write_shards(tmp_path / "shards", COLOURS, random_states(5, 6))
    write_report(evaluate(Evaluator(tagger, {}), folder), folder, tagger, [], str(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert source in page
    listed = page.split("Joined to</th>")[1].split("</table>")[0]
    (neighbours,) = re.findall(r'<th scope="row">red</th><td>(.*?)</td>', listed)
    if graph.get("kind") == "nearest":
        assert neighbours.count(" 1.00") == 2
    else:
        assert neighbours == ("black 2.50" if "propagation" in graph else "black 1.00")


def test_calibration_is_drawn(tmp_path: Path) -> None:
    evaluation, folder, tagger = example(tmp_path, COLOURS, random_states(40, 6))
    assert "calibrate.py turns them into probabilities" in page_of(tmp_path / "without", COLOURS, random_states(4, 6))
    logits_NC = evaluation.scores["sigrl_independent"]["gzsl"]
    config = CalibrateConfig(checkpoint="c", data="d", min_examples=2)
    made = fit_calibration(logits_NC, evaluation.states_NC, COLOURS, config)
    calibrated = Tagger(replace(tagger.checkpoint, calibration=made))
    evaluation = evaluate(Evaluator(calibrated, {}), folder)
    write_report(evaluation, folder, calibrated, [], str(tmp_path))
    section = (tmp_path / "report.html").read_text().split('id="calibration"')[1].split("</section>")[0]
    assert section.count('role="img"') == 2
    for split in ("seen", "unseen"):
        values = evaluation.metrics["calibration"][split]
        for key in ("ece_before", "ece_after"):
            assert f"(error {100 * values[key]:.1f})" in section
        assert f"<td>{100 * values['f1_thresholds']:.1f}</td>" in section


def test_images_of_another_folder_are_refused(tmp_path: Path) -> None:
    evaluation, folder, tagger = example(tmp_path, COLOURS, random_states(7, 6))
    evaluation.uris[6] = "other.jpg"
    with pytest.raises(ShardError, match=r"row 6 is 006\.jpg, but other\.jpg was evaluated"):
        write_report(evaluation, folder, tagger, [], str(tmp_path / "out"))
    fewer = write_shards(tmp_path / "fewer", COLOURS, random_states(3, 6))
    with pytest.raises(ShardError, match="has 3 rows, but 7 were evaluated"):
        write_report(evaluation, fewer, tagger, [], str(tmp_path / "out"))


def test_of_a_test_split_its_own_images_are_shown(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", COLOURS, random_states(20, 6), test_fraction=0.4)
    tagger = tagger_of(COLOURS)
    evaluation = evaluate(Evaluator(tagger, {}), folder)
    assert 0 < len(evaluation.uris) < 20
    write_report(evaluation, folder, tagger, [], str(tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert [uri for uri in evaluation.uris if f'title="{uri}"' not in page] == []


def test_boxes_of_labels_do_not_touch() -> None:
    rng = np.random.default_rng(0)
    nodes_CD, boxes = rng.normal(size=(80, 16)), np.stack([rng.uniform(40, 150, 80), np.full(80, 22.0)], axis=1)
    edges = [(c, (c + 1) % 80) for c in range(80)]
    for nodes in (nodes_CD, np.zeros_like(nodes_CD)):
        places = spread(layout(nodes, edges), boxes)
        overlap = (boxes[:, None] + boxes) / 2 - np.abs(places[:, None] - places)
        np.fill_diagonal(overlap[..., 0], -1)
        assert not (overlap > 0).all(axis=2).any()
        assert (places - boxes / 2 >= 0).all()
        assert (places + boxes / 2 <= SIZE).all()


@pytest.mark.parametrize(("low", "high"), [(0, 100), (0.02, 0.08), (3, 3), (0, 0), (-1, 1e6), (-5, -5), (1, 2)])
def test_ticks_enclose_the_range(low: float, high: float) -> None:
    values = ticks(low, high)
    assert values[0] <= low <= high <= values[-1]
    assert 2 <= len(values) <= 8


def test_the_table_for_the_terminal() -> None:
    def protocol(value: float) -> dict[str, float]:
        return {"map": value, "f1@3": value / 2, "f1@5": value / 4, "p@3": 0.0}

    rows = [
        {"name": "clip_global", "gzsl": protocol(0.5), "seen": protocol(math.nan)},
        {"name": "mine", "gzsl": protocol(0.25), "seen": protocol(math.nan)},
        {"name": "sigrl", "gzsl": protocol(0.5001), "seen": protocol(math.nan)},
    ]
    assert print_table({"rows": rows}).splitlines() == [
        "             All (GZSL)                Seen",
        "             mAP         F1@3   F1@5   mAP",
        "-----------  ----------  -----  -----  ----",
        "sigrl        50.0*       25.0*  12.5*  –",
        "clip_global  50.0*       25.0*  12.5*  –",
        "mine         25.0        12.5   6.2    –",
    ]
