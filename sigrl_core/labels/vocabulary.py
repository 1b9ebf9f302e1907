"""The ordered list of labels: names, seen or unseen, and the texts that the text tower encodes for each."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from sigrl_core.errors import VocabularyError
from sigrl_core.io import storage

LabelGroup = Literal["seen", "unseen"]

_KEYS = ("label", "split", "prompts", "synonyms")


@dataclass(frozen=True, kw_only=True)
class Label:
    """One label.

    Attributes:
        name: the label as the user writes it; unique in its vocabulary.
        group: `seen` labels may be used in training, `unseen` ones only in inference; the key `split` of JSON rows.
        prompts: descriptions that the CLIP text tower encodes unchanged, in place of the name.
        synonyms: other names, which are put into the prompt templates.
    """

    name: str
    group: LabelGroup = "seen"
    prompts: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()

    def texts(self, templates: Sequence[str]) -> tuple[str, ...]:
        """Returns all texts of this label for the text tower; their embeddings are averaged."""
        names = self.synonyms if self.prompts else (self.name, *self.synonyms)
        return (*self.prompts, *(template.format(name) for name in names for template in templates))


@dataclass(frozen=True)
class Vocabulary:
    """An ordered list of labels. A tensor dimension C counts the labels of one vocabulary in this order."""

    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        if empty := [i for i, label in enumerate(self.labels) if not label.name.strip()]:
            raise VocabularyError(f"vocabulary: label {empty[0] + 1} is empty; give every label a name")
        counts = Counter(self.names)
        if repeated := [name for name, count in counts.items() if count > 1]:
            raise VocabularyError(
                f"vocabulary: {len(repeated)} label(s) listed twice: {', '.join(repeated[:5])}; keep one of each"
            )

    @classmethod
    def from_names(cls, names: Iterable[str], group: LabelGroup = "seen") -> Vocabulary:
        return cls(tuple(Label(name=name, group=group) for name in names))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def names(self) -> list[str]:
        return [label.name for label in self.labels]

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each label name on the C axis."""
        return {name: position for position, name in enumerate(self.names)}

    def positions(self, group: LabelGroup) -> list[int]:
        """Returns the positions of one group on the C axis, in order."""
        return [position for position, label in enumerate(self.labels) if label.group == group]

    def subset(self, group: LabelGroup) -> Vocabulary:
        return Vocabulary(tuple(label for label in self.labels if label.group == group))

    def with_unseen(self, names: Collection[str]) -> Vocabulary:
        """Returns the same labels in the same order, with those in `names` unseen."""
        return Vocabulary(
            tuple(replace(label, group="unseen") if label.name in names else label for label in self.labels)
        )

    @cached_property
    def hash(self) -> str:
        """sha256 of names, groups, prompts and synonyms in order; shards and checkpoints of one run have the same."""
        return hashlib.sha256(json.dumps(self.to_rows(), ensure_ascii=False).encode()).hexdigest()

    def to_rows(self) -> list[dict]:
        """Returns one JSON object per label. A label without synonyms has no such key, as in older vocabularies, whose
        hash thus stays the same."""
        return [
            {"label": label.name, "split": label.group, "prompts": list(label.prompts)}
            | ({"synonyms": list(label.synonyms)} if label.synonyms else {})
            for label in self.labels
        ]

    def to_json(self) -> str:
        return json.dumps(self.to_rows(), ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_rows(cls, rows: Sequence[dict], where: str) -> Vocabulary:
        """Reads what `to_rows` returned; raises VocabularyError as `parse`."""
        labels = tuple(_label(row, f"{where}, row {number}") for number, row in enumerate(rows, 1))
        try:
            return cls(labels)
        except VocabularyError as error:
            raise VocabularyError(f"{where}: {error}") from error

    @classmethod
    def parse(cls, text: str, where: str) -> Vocabulary:
        """Reads a vocabulary: one label per line, or JSON rows (an array, or one object per line).

        Args:
            text: the file's content.
            where: the file's name, for errors.

        Raises:
            VocabularyError: no labels, a label twice, or a row that is not `{label, split, prompts, synonyms}`.
        """
        lines = nonblank_lines(text)
        if text.lstrip().startswith("[") or (lines and lines[0].startswith("{")):
            try:
                rows = parse_json_rows(text)
            except (ValueError, RecursionError) as error:
                raise VocabularyError(
                    f"{where}: not valid JSON ({error}); write JSON rows or one label per line"
                ) from error
        else:
            rows = [{"label": line} for line in lines]
        if not rows:
            raise VocabularyError(f"{where}: no labels found; write one label per line")
        return cls.from_rows(rows, where)

    @classmethod
    def load(cls, uri: str) -> Vocabulary:
        """Reads a vocabulary file, local or s3://; see `parse`.

        Raises:
            StorageError: missing, denied or unreachable.
            VocabularyError: not UTF-8 text, or not a vocabulary.
        """
        if storage.is_folder(storage.absolute(uri)):
            inside = storage.join(uri, "vocabulary.json")
            file = inside if storage.exists(storage.absolute(inside)) else "a file with one label per line"
            raise VocabularyError(f"{uri}: cannot be read as a label list, because it is a folder; give {file}")
        try:
            return cls.parse(storage.read_bytes(storage.absolute(uri)).decode(), uri)
        except UnicodeDecodeError as error:
            raise VocabularyError(f"{uri}: not UTF-8 text ({error}); save it as plain text") from error


def parse_json_rows(text: str) -> list:
    """Reads the elements of a JSON array, or one JSON value per line.

    Raises:
        ValueError: not JSON.
        RecursionError: nested too deeply.
    """
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in nonblank_lines(text)]


def nonblank_lines(text: str) -> list[str]:
    return [line.strip() for line in text.lstrip("\ufeff").splitlines() if line.strip()]


def _label(row: object, where: str) -> Label:
    if not isinstance(row, dict) or not is_text(row.get("label")):
        raise VocabularyError(f'{where}: expected an object with a text "label", found {json.dumps(row)[:80]}')
    if unknown := sorted(set(row) - set(_KEYS)):
        raise VocabularyError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}")
    group, texts = row.get("split", "seen"), {key: row.get(key, []) for key in ("prompts", "synonyms")}
    if group not in get_args(LabelGroup):
        raise VocabularyError(
            f"{where}: split is {json.dumps(group)[:80]}; expected one of {', '.join(get_args(LabelGroup))}"
        )
    for key, value in texts.items():
        if not isinstance(value, list) or not all(is_text(text) and text.strip() for text in value):
            raise VocabularyError(f"{where}: {key} must be a list of texts, found {json.dumps(value)[:80]}")
    return Label(
        name=row["label"].strip(), group=group, prompts=tuple(texts["prompts"]), synonyms=tuple(texts["synonyms"])
    )


def is_text(value: object) -> bool:
    """Returns whether this is a string that UTF-8 can encode; JSON escapes can hold half a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
