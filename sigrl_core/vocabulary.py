"""The ordered label list: which labels exist, which were seen in training, what the text tower reads for each."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from sigrl_core.errors import VocabularyError

Split = Literal["seen", "unseen"]


@dataclass(frozen=True, kw_only=True)
class Label:
    """One label.

    Attributes:
        name: the label as the user writes it; unique in its vocabulary.
        split: `seen` labels may be trained on, `unseen` ones are only ever asked for.
        prompts: descriptions that the CLIP text tower reads as they are, in place of the name.
        synonyms: other names, which go through the prompt templates.
    """

    name: str
    split: Split = "seen"
    prompts: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()

    def texts(self, templates: Sequence[str]) -> tuple[str, ...]:
        """All that the text tower reads for this label; the embeddings of one label are averaged."""
        names = self.synonyms if self.prompts else (self.name, *self.synonyms)
        return (*self.prompts, *(template.format(name) for name in names for template in templates))


@dataclass(frozen=True)
class Vocabulary:
    """Labels in the order of every C axis of the project."""

    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        if empty := [i for i, label in enumerate(self.labels) if not label.name.strip()]:
            raise VocabularyError(f"vocabulary: label number {empty[0] + 1} is empty; every label needs a name")
        counts = Counter(self.names)
        if repeated := [name for name, count in counts.items() if count > 1]:
            raise VocabularyError(
                f"vocabulary: {len(repeated)} label(s) listed twice: {', '.join(repeated[:5])}; keep one of each"
            )

    @classmethod
    def of(cls, names: Iterable[str], split: Split = "seen") -> Vocabulary:
        return cls(tuple(Label(name=name, split=split) for name in names))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def names(self) -> list[str]:
        return [label.name for label in self.labels]

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each label name on the C axis."""
        return {name: position for position, name in enumerate(self.names)}

    def positions(self, split: Split) -> list[int]:
        """Positions of one split on the C axis, in order."""
        return [position for position, label in enumerate(self.labels) if label.split == split]

    def subset(self, split: Split) -> Vocabulary:
        return Vocabulary(tuple(label for label in self.labels if label.split == split))

    def with_unseen(self, names: Collection[str]) -> Vocabulary:
        """The same labels in the same order, those of these names unseen."""
        return Vocabulary(tuple(replace(each, split="unseen") if each.name in names else each for each in self.labels))

    @cached_property
    def hash(self) -> str:
        """sha256 of names, splits, prompts and synonyms in order; shards and checkpoints of one run carry the same."""
        return hashlib.sha256(json.dumps(self.to_rows(), ensure_ascii=False).encode()).hexdigest()

    def to_rows(self) -> list[dict]:
        """One object a label; without synonyms no key for them, so that older vocabularies keep their hash."""
        return [
            {"label": label.name, "split": label.split, "prompts": list(label.prompts)}
            | ({"synonyms": list(label.synonyms)} if label.synonyms else {})
            for label in self.labels
        ]

    def to_json(self) -> str:
        return json.dumps(self.to_rows(), ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_rows(cls, rows: Sequence[dict], where: str) -> Vocabulary:
        return cls(tuple(_label(row, f"{where}, row {number}") for number, row in enumerate(rows, 1)))

    @classmethod
    def parse(cls, text: str, where: str) -> Vocabulary:
        """Reads a vocabulary: one label per line, or JSON rows (an array, or one object per line).

        Args:
            text: the file's content.
            where: the file's name, for errors.

        Raises:
            VocabularyError: no labels, duplicates, a row that is not `{label, split, prompts, synonyms}`.
        """
        try:
            lines = nonblank_lines(text)
            if text.lstrip().startswith("[") or (lines and lines[0].startswith("{")):
                vocabulary = cls.from_rows(json_rows(text), where)
            else:
                vocabulary = cls.of(lines)
        except json.JSONDecodeError as error:
            raise VocabularyError(
                f"{where}: not valid JSON ({error}); write JSON rows or one label per line"
            ) from error
        except VocabularyError as error:
            raise VocabularyError(f"{where}: {error}") from error
        if not len(vocabulary):
            raise VocabularyError(f"{where}: no labels found; write one label per line")
        return vocabulary


def json_rows(text: str) -> list:
    """Rows of an array, or of one JSON value per line; JSONDecodeError where it is neither."""
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in nonblank_lines(text)]


def nonblank_lines(text: str) -> list[str]:
    return [line.strip() for line in text.lstrip("\ufeff").splitlines() if line.strip()]


_KEYS = ("label", "split", "prompts", "synonyms")


def _label(row: object, where: str) -> Label:
    if not isinstance(row, dict) or not isinstance(row.get("label"), str):
        raise VocabularyError(f'{where}: expected an object with a text "label", found {json.dumps(row)[:80]}')
    if unknown := sorted(set(row) - set(_KEYS)):
        raise VocabularyError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}")
    split, texts = row.get("split", "seen"), {key: row.get(key, []) for key in ("prompts", "synonyms")}
    if split not in get_args(Split):
        raise VocabularyError(f"{where}: split is {split!r}; expected one of {', '.join(get_args(Split))}")
    for key, value in texts.items():
        if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
            raise VocabularyError(f"{where}: {key} must be a list of texts, found {json.dumps(value)[:80]}")
    return Label(
        name=row["label"].strip(), split=split, prompts=tuple(texts["prompts"]), synonyms=tuple(texts["synonyms"])
    )
