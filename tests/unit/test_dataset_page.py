"""The page about a shard folder: all sections, strange names, and unusual folders."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sigrl_core.config import LabelPolicy
from sigrl_core.data import images
from sigrl_core.data.shards import QUARANTINE_SCHEMA, ShardFolder, assign_split
from sigrl_core.errors import ShardError
from sigrl_core.io.checksums import sha256_of, with_checksum
from sigrl_core.io.parquet import to_parquet
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.report import dataset
from sigrl_core.report.charts import histogram
from sigrl_core.report.contents import NUM_SAMPLES, Contents, count_contents
from sigrl_core.report.dataset import dataset_page, write_dataset_page
from tests.conftest import random_states, vocabulary_of, write_shards

pytestmark = pytest.mark.unit

ATTACK = '<script>document.title="owned"</script><img src=x onerror=alert(1)>'
CONFIG = {
    "corpus": "jsonl",
    "images": "/data/a & b",
    "vocabulary": None,
    "annotation_scope": "all",
    "label_policy": "full",
}


def finished(
    root: Path,
    vocabulary: Vocabulary,
    states_NC: np.ndarray,
    *,
    quarantine: list[dict] = (),
    duplicates: int = 0,
    **more,
) -> ShardFolder:
    """Returns a shard folder as preprocess.py writes it, with this quarantine and, in `config`, changes of CONFIG."""
    config = {**CONFIG, **more.pop("config", {})}
    folder = write_shards(root, vocabulary, states_NC, **more)
    data = to_parquet(pa.Table.from_pylist(list(quarantine), QUARANTINE_SCHEMA))
    (root / "quarantine.parquet").write_bytes(data)
    changes: dict[str, Any] = {
        "config": config,
        "code_version": "9.8.7",
        "quarantined": len(quarantine),
        "duplicates": duplicates,
        "rows_in": len(states_NC) + len(quarantine) + duplicates,
        "quarantine": {"name": "quarantine.parquet", "sha256": sha256_of(data)},
    }
    (root / "manifest.json").write_text(json.dumps(with_checksum({**folder.manifest, **changes})))
    return ShardFolder.open(str(root))


def page_of(folder: ShardFolder) -> str:
    uri = write_dataset_page(folder)
    assert uri == f"{folder.uri}/dataset.html"
    return Path(uri).read_text(encoding="utf-8")


def section(page: str, anchor: str) -> str:
    return page.split(f'<h2 id="{anchor}">')[1].split("</section>")[0]


def count(folder: ShardFolder) -> Contents:
    return count_contents(folder, lambda count, note="": None)


def bars(page: str) -> list[tuple[str, int]]:
    """Returns names and counts of the histogram of labels."""
    rows = re.findall(r'<li><span class="name" title="(.*?)">.*?class="value">([\d,]+)<', section(page, "labels"))
    return [(name, int(number.replace(",", ""))) for name, number in rows]


COLOURS = vocabulary_of(["red", "green & blue", ATTACK, "black"], ["white", "grey"])


def test_every_section_is_there(tmp_path: Path) -> None:
    quarantine = [{"uri": f"bad {i}.jpg", "reason": "truncated", "detail": "cut"} for i in range(7)]
    quarantine.append({"uri": "text.jpg", "reason": "not_an_image", "detail": "starts with b'text'"})
    states_NC = random_states(30, 6)
    folder = finished(tmp_path / "shards", COLOURS, states_NC, quarantine=quarantine, duplicates=2)
    page = page_of(folder)
    held_out = sum(assign_split(f"{number:064x}", 0, 0.1) != "train" for number in range(30))
    assert 0 < held_out < 30
    overview = section(page, "overview")
    for words in (
        f"{30 - held_out} for training",
        f"{held_out} held out for validation",
        "8 quarantined",
        "2 duplicates",
    ):
        assert f"<span>{words}</span>" in overview
    assert "Labels that an image does not list are absent" in overview
    assert "<strong>8 files</strong> not usable" in overview
    assert "<strong>30</strong> of 40 listed images can be used; they show <strong>all 6 labels</strong>." in page
    assert bars(page)[0][1] == (states_NC == 1).sum(axis=0).max()
    assert section(page, "together").count('scope="col"') == section(page, "together").count('scope="row"') == 6
    assert page.count('alt="Image ') == page.count('src="data:image/jpeg;base64,') == 24
    assert "all 64 pixels" in section(page, "sizes")
    quarantined = section(page, "quarantine")
    assert quarantined.index("7 files cut short or damaged") < quarantined.index("1 file not an image at all")
    assert quarantined.count("bad ") == 5
    for fact in (folder.vocabulary.hash, folder.manifest["sha256"], "9.8.7", "/data/a &amp; b"):
        assert fact in section(page, "facts")
    folder.verify()


def test_what_comes_from_outside_is_escaped_and_nothing_is_fetched(tmp_path: Path) -> None:
    quarantine = [{"uri": ATTACK, "reason": "truncated", "detail": ATTACK + "z" * 5000}]
    folder = finished(tmp_path / "s", COLOURS, random_states(9, 6), quarantine=quarantine, config={"images": ATTACK})
    page = page_of(folder)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert len(re.findall("&lt;script&gt;", section(page, "quarantine"))) == 2
    assert "z" * 301 not in page
    assert "green &amp; blue" in page
    assert not re.search(r"""\b(?:src|href)=["'](?!data:|#)|url\(|@import""", page)


def test_the_same_folder_gives_the_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    pages = [page_of(finished(tmp_path / name, COLOURS, random_states(17, 6))) for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_a_page_that_is_there_is_left_alone(tmp_path: Path) -> None:
    folder = finished(tmp_path / "shards", COLOURS, random_states(5, 6))
    uri = dataset_page(folder)
    Path(uri).write_text("kept")
    assert dataset_page(folder) == uri
    assert Path(uri).read_text() == "kept"


def test_its_import_does_without_torch_and_matplotlib() -> None:
    code = "import sys, sigrl_core.report.dataset; sys.exit(bool({'torch', 'ray', 'matplotlib'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_labels_that_training_never_meets_are_named(tmp_path: Path) -> None:
    """Only held-out images have `held`; no image has `never` and the unseen `nowhere`."""
    held_out = np.array([assign_split(f"{number:064x}", 0, 0.1) != "train" for number in range(30)])
    states_NC = np.full((30, 4), -1, np.int8)
    states_NC[~held_out, 0] = states_NC[held_out, 1] = 1
    page = page_of(finished(tmp_path / "s", vocabulary_of(["often", "held", "never"], ["nowhere"]), states_NC))
    labels = section(page, "labels")
    assert bars(page) == [("often", (~held_out).sum()), ("held", held_out.sum())]
    assert "Never present: 2 labels" in labels
    assert re.findall(r'<li class="name">(?:<.*?&nbsp;)?(\w+)</li>', labels) == ["never", "nowhere", "held"]
    assert "Held out only: 1 label<" in labels
    assert "<strong>2 labels</strong> never present" in section(page, "overview")
    assert "<strong>1 seen label</strong> present in held-out images only" in section(page, "overview")
    assert "they show <strong>2 of 4 labels</strong>" in page


def test_how_often_labels_occur_together(tmp_path: Path) -> None:
    states_NC = np.array([[1, 1, -1]] * 3 + [[1, -1, 0]] * 9 + [[-1, -1, 1]] * 2, np.int8)
    folder = finished(tmp_path / "s", vocabulary_of(["a", "b", "c"]), states_NC)
    assert count(folder).together_KK.tolist() == [[12, 3, 0], [3, 3, 0], [0, 0, 2]]
    together = section(page_of(folder), "together")
    assert 'title="of 12 images with a, with b: 25.0 %">25</td>' in together
    assert 'title="of 3 images with b, with a: 100.0 %">100</td>' in together
    assert together.count("<td></td>") == 4 + 1  # pairs that never occur, and the corner
    assert "Images in which a label is unknown count as images without it" in together


def test_no_label_no_quarantine_no_validation(tmp_path: Path) -> None:
    states_NC = np.full((3, 6), -1, np.int8)
    page = page_of(finished(tmp_path / "s", COLOURS, states_NC, validation_fraction=0.0))
    assert bars(page) == []
    assert "Never present: 6 labels" in page
    assert "they show <strong>0 of 6 labels</strong>" in page
    assert "Fewer than two labels occur" in page
    assert page.count("no label</li>") == 3
    assert "Empty: all listed files can be used." in page
    assert "<strong>Nothing</strong> held out for validation" in page
    assert "<strong>3 images</strong> without any label" in page


def test_no_vocabulary_at_all(tmp_path: Path) -> None:
    """As of a folder of images without folders in it."""
    page = page_of(finished(tmp_path / "s", vocabulary_of([]), np.zeros((3, 0), np.int8)))
    assert "they have no labels" in page
    assert "The corpus has no labels" in section(page, "labels")
    assert page.count('alt="Image ') == 3


@pytest.mark.parametrize("labels", [1, 2])
def test_one_image(tmp_path: Path, labels: int) -> None:
    vocabulary = vocabulary_of([f"label {c}" for c in range(labels)])
    page = page_of(finished(tmp_path / "s", vocabulary, np.ones((1, labels), np.int8)))
    assert page.count('alt="Image ') == 1
    assert "1 image spread" in page
    assert "nan" not in page.split("<main>")[1]


def test_many_labels_are_thinned_out(tmp_path: Path) -> None:
    vocabulary = vocabulary_of([f"a rather long name of label {c}" for c in range(1200)])
    states_NC = random_states(60, 1200)
    states_NC[:, 900:] = -1
    page = page_of(finished(tmp_path / "s", vocabulary, states_NC))
    assert len(bars(page)) == 80
    assert bars(page) == sorted(bars(page), key=lambda bar: -bar[1])
    assert "The 80 most frequent of 900 labels that occur; 820 more" in page
    assert "Never present: 300 labels" in page
    assert section(page, "labels").count('<li class="name">') == 200
    assert "and 100 more" in page
    assert section(page, "together").count('scope="col"') == 40
    assert "The 1,000 most frequent labels; manifest.json has all" in page


def test_samples_are_spread_over_shards_and_labels(tmp_path: Path) -> None:
    states_NC = np.full((200, 30), -1, np.int8)
    states_NC[np.random.default_rng(0).permutation(200)[:190], np.arange(190) % 30] = 1
    folder = finished(tmp_path / "s", vocabulary_of([f"{c}" for c in range(30)]), states_NC, rows_per_shard=10)
    contents = count(folder)
    numbers = [int(sample.uri.removesuffix(".jpg")) for sample in contents.samples]
    assert len(set(numbers)) == len(numbers) == NUM_SAMPLES
    assert len({number // 10 for number in numbers}) > 12
    shown = {tuple(sample.states_C.tolist()) for sample in contents.samples}
    assert len(shown) == NUM_SAMPLES  # 23 labels and an image without any
    assert not folder._checked  # no shard was read as a whole


def test_explicit_negatives_are_named(tmp_path: Path) -> None:
    states_NC = np.array([[1, -1, 0]], np.int8)
    page = page_of(finished(tmp_path / "s", vocabulary_of(["here", "not here", "who knows"]), states_NC))
    assert 'Absent: <span class="name">not here</span>. Unknown: 1 label.' in section(page, "images")


def test_sizes_are_counted_and_far_ones_do_not_squeeze_the_others(tmp_path: Path, encoded) -> None:
    sizes = [(60 + i % 7, 48) for i in range(199)] + [(9000, 30)]
    jpegs = [encoded(Image.new("RGB", size)) for size in sizes]
    states_NC = np.ones((200, 1), np.int8)
    folder = finished(tmp_path / "s", vocabulary_of(["x"]), states_NC, jpegs=jpegs, rows_per_shard=100)
    sizes = section(page_of(folder), "sizes")
    assert "8 different sizes" in sizes
    assert "60 to 9,000 pixels, median 63" in sizes
    assert "the last column includes 1 larger one" in sizes
    assert "0 portrait, 0 square, 200 landscape" in sizes
    largest = max(len(image) for image in re.findall(r'src="data:[^"]*"', page_of(folder)))
    assert largest < 20_000
    assert sorted(count(folder).image_bytes) == sorted(len(jpeg) for jpeg in jpegs)


def test_every_rule_and_reason_has_words() -> None:
    assert set(dataset.REASONS) == set(images.REASONS)
    assert set(dataset.LABEL_POLICIES) == set(get_args(LabelPolicy))


def test_a_shard_that_is_not_what_was_written(tmp_path: Path) -> None:
    folder = finished(tmp_path / "s", COLOURS, random_states(5, 6))
    (tmp_path / "s/shards/00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(ShardError, match=r"00000\.parquet: cannot be read"):
        write_dataset_page(folder)
    (tmp_path / "s/shards/00000.parquet").write_bytes(to_parquet(pa.table({"width": [1] * 5})))
    with pytest.raises(ShardError, match="columns is"):
        write_dataset_page(folder)


@pytest.mark.parametrize("counts", [[1], [0, 3, 0], [1_500_000, 2]])
def test_histograms(counts: list[int]) -> None:
    edges = [float(edge) for edge in range(len(counts) + 1)]
    drawn = histogram("how many", counts, edges, x_title="edge", x_ticks=[(0.0, "0"), (99.0, "far")])
    assert drawn.count('class="column"') == sum(count > 0 for count in counts)
    assert "far" not in drawn
    assert ("1.5M" in drawn) == (max(counts) > 1_000_000)
