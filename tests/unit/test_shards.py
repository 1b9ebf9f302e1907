"""The shard folder: intact folders are read, altered ones refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sigrl_core.data.label_states import count_states, decode_states, encode_states
from sigrl_core.data.shards import QUARANTINE_SCHEMA, SCHEMA_VERSION, SHARD_SCHEMA, ShardFolder, assign_split
from sigrl_core.errors import ShardError
from sigrl_core.io.checksums import sha256_of, with_checksum
from sigrl_core.io.parquet import to_parquet
from sigrl_core.labels.vocabulary import Vocabulary

pytestmark = pytest.mark.unit

VOCABULARY = Vocabulary.from_names(["cat", "dog", "bird"])
SHARDS = [[[1, -1, 0], [-1, 1, 0]], [[1, 1, -1]]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A shard folder of two shards with three rows, one quarantined, one duplicate."""
    root = tmp_path / "shards folder"
    (root / "shards").mkdir(parents=True)
    listed, number = [], 0
    for i, states in enumerate(SHARDS):
        rows = []
        for state in states:
            row = {"uri": f"{number}.jpg", "sha256": f"{number:064x}", "image": b"jpeg", "width": 4, "height": 3}
            rows.append({**row, "label_states": encode_states(np.array(state))})
            number += 1
        data = to_parquet(pa.Table.from_pylist(rows, SHARD_SCHEMA))
        (root / "shards" / f"{i:05d}.parquet").write_bytes(data)
        listed.append({"name": f"{i:05d}.parquet", "rows": len(rows), "sha256": sha256_of(data)})
    quarantine = [{"uri": "x.jpg", "reason": "truncated", "detail": "half"}]
    quarantine_bytes = to_parquet(pa.Table.from_pylist(quarantine, QUARANTINE_SCHEMA))
    (root / "quarantine.parquet").write_bytes(quarantine_bytes)
    (root / "vocabulary.json").write_text(VOCABULARY.to_json())
    manifest = {
        "kind": "shards",
        "schema_version": SCHEMA_VERSION,
        "code_version": "0",
        "config": {},
        "vocabulary_hash": VOCABULARY.hash,
        "num_labels": 3,
        "rows_in": 5,
        "rows_out": 3,
        "quarantined": 1,
        "duplicates": 1,
        "split": {"seed": 0, "validation": 0.5, "test": 0.0},
        "quarantine": {"name": "quarantine.parquet", "sha256": sha256_of(quarantine_bytes)},
        "shards": listed,
        "label_counts": count_states(np.concatenate(SHARDS), VOCABULARY),
    }
    write_manifest(root, manifest)
    return root


def write_manifest(root: Path, manifest: dict) -> None:
    (root / "manifest.json").write_text(json.dumps(with_checksum(manifest)))


def check(root: Path) -> str:
    """Returns the error of a folder, or an empty text."""
    try:
        ShardFolder.open(str(root)).verify()
    except ShardError as error:
        return str(error)
    return ""


def test_an_intact_folder_is_read(folder: Path) -> None:
    shards = ShardFolder.open(str(folder))
    shards.verify()
    assert (shards.num_rows, shards.shard_rows, shards.vocabulary) == (3, [2, 1], VOCABULARY)
    for _ in range(2):  # the first read checks the whole file, later ones read columns alone
        table = shards.read_shard(0, ["uri", "label_states"])
        assert table["uri"].to_pylist() == ["0.jpg", "1.jpg"]
        assert decode_states(table["label_states"], 3).tolist() == SHARDS[0]
    assert shards.read_shard(1).schema == SHARD_SCHEMA
    assert shards.read_quarantine()["reason"].to_pylist() == ["truncated"]
    assert shards.manifest["label_counts"]["bird"] == {"present": 0, "absent": 1, "unknown": 2}


def test_states_round_trip() -> None:
    states = np.random.default_rng(0).integers(-1, 2, (7, 5)).astype(np.int8)
    column = pa.chunked_array([[encode_states(row) for row in states]])
    assert np.array_equal(decode_states(column, 5), states)
    assert decode_states(pa.array([b"", b""]), 0).shape == (2, 0)
    with pytest.raises(ShardError, match="row 0: 5 label states, but the vocabulary has 4"):
        decode_states(column, 4)


def test_parquet_is_the_same_bytes_for_the_same_rows() -> None:
    table = pa.table({"uri": ["a", "b"], "image": [b"1", b"2"]})
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert to_parquet(table) == to_parquet(pieces)


def test_splits_depend_on_content() -> None:
    hashes = [sha256_of(str(i).encode()) for i in range(4000)]

    def members(split: str, *config: float) -> set[str]:
        return {sha256 for sha256 in hashes if assign_split(sha256, *config) == split}

    validation = members("validation", 0, 0.1)
    assert 330 < len(validation) < 470
    assert validation != members("validation", 1, 0.1)
    assert validation < members("validation", 0, 0.2)  # a larger share contains the smaller one
    assert not members("validation", 0, 0.0)
    assert validation == members("validation", 0, 0.1, 0.3)
    assert 1050 < len(members("test", 0, 0.1, 0.3)) < 1350
    assert len(members("train", 0, 0.1, 0.3)) == 4000 - len(validation) - len(members("test", 0, 0.1, 0.3))


def test_missing_and_unfinished_folders(folder: Path, tmp_path: Path) -> None:
    assert "no shard folder here" in check(tmp_path / "nothing")
    os.unlink(folder / "manifest.json")
    (folder / "plan.json").write_text("{}")
    assert "has not finished here (no manifest.json); run the same command again" in check(folder)


def test_every_flipped_bit_is_detected(folder: Path) -> None:
    for path in [*folder.glob("*.parquet"), *folder.glob("shards/*"), folder / "vocabulary.json"]:
        good = path.read_bytes()
        for position in range(0, len(good), max(1, len(good) // 25)):
            bad = bytearray(good)
            bad[position] ^= 0x01
            path.write_bytes(bad)
            error = check(folder)
            assert "run preprocess.py again" in error or good[position] in b" \n", (path, position)
        path.write_bytes(good)
    assert check(folder) == ""


def test_changed_files_are_detected(folder: Path, tmp_path: Path) -> None:
    def broken(change) -> str:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        change(copy)
        return check(copy)

    def edit_manifest(copy: Path, **changes) -> None:
        write_manifest(copy, json.loads((copy / "manifest.json").read_text()) | changes)

    def edit_without_checksum(copy: Path) -> None:
        text = (copy / "manifest.json").read_text()
        (copy / "manifest.json").write_text(text.replace('"rows_in": 5', '"rows_in": 6'))

    def truncate(copy: Path) -> None:
        os.truncate(copy / "shards/00001.parquet", 100)

    assert "changed after it was written" in broken(edit_without_checksum)
    assert "00001.parquet: sha256 is" in broken(truncate)
    assert "00000.parquet: listed in manifest.json but missing" in broken(
        lambda copy: os.unlink(copy / "shards/00000.parquet")
    )
    assert "quarantine.parquet: listed" in broken(lambda copy: os.unlink(copy / "quarantine.parquet"))
    assert "00009.parquet: not in the manifest" in broken(lambda copy: (copy / "shards/00009.parquet").write_bytes(b""))
    other = Vocabulary.from_names(["cat", "bird", "dog"]).to_json()
    assert "vocabulary.json: hash is" in broken(lambda copy: (copy / "vocabulary.json").write_text(other))
    assert "not valid JSON" in broken(lambda copy: (copy / "manifest.json").write_text('{"kind'))
    assert "not the manifest of a shard folder" in broken(lambda copy: edit_manifest(copy, kind="tags"))
    assert "schema version 99" in broken(lambda copy: edit_manifest(copy, schema_version=99))
    assert "rows_out + quarantined + duplicates is 5, expected 6" in broken(lambda copy: edit_manifest(copy, rows_in=6))
    assert "label counts" in broken(lambda copy: edit_manifest(copy, label_counts={}))


def with_images_of(folder: Path, short_side: int, short_sides: dict[str, int]) -> ShardFolder:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"] = {"short_side": short_side}
    manifest["shards"][0]["short_sides"] = short_sides
    (folder / "manifest.json").write_text(json.dumps(with_checksum(manifest)))
    return ShardFolder.open(str(folder))


def test_images_below_the_size_of_a_model(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = with_images_of(folder, 256, {"200": 1, "256": 2})
    with pytest.raises(ShardError) as caught:
        small.check_image_size(336, "--allow-enlarged")
    assert str(caught.value) == (
        f"{folder}: short sides of its images are at most 256 pixels, but the model takes 336, so every image would be "
        "enlarged; run preprocess.py with --short-side 336 or more and another --out, or add --allow-enlarged"
    )
    small.check_image_size(336, "--allow-enlarged", allow_enlarged=True)
    assert capfd.readouterr().err == ""
    small.check_image_size(224)
    assert capfd.readouterr().err == (
        f"{folder}: 1 of 3 images are enlarged to the model's 224 pixels, because their originals are smaller\n"
    )
    for short_side, sides in ((0, {"200": 3}), (256, {"256": 3})):
        with_images_of(folder, short_side, sides).check_image_size(200)
    assert capfd.readouterr().err == ""


def test_the_check_command(folder: Path, tmp_path: Path) -> None:
    def run(path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sigrl_core.data.shards", path],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )

    sound = run(folder)
    assert (sound.returncode, sound.stderr) == (0, "")
    assert "rows_in 5, rows_out 3, quarantined 1, duplicates 1" in sound.stdout
    (folder / "shards/00001.parquet").write_bytes(b"PAR1")
    for path in (folder, tmp_path / "missing"):
        broken = run(path)
        assert broken.returncode == 1
        assert broken.stderr.startswith("error: ")
        assert broken.stderr.count("\n") == 1
