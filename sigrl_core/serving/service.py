"""Requests -> tags. Holds the models, which may change under way, and knows neither HTTP nor Ray."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np

from sigrl_core import images, storage
from sigrl_core.checkpoint import checkpoint_version
from sigrl_core.errors import CheckpointError, ImageError, SigrlError, VocabularyError
from sigrl_core.heat_map import to_png
from sigrl_core.serving.messages import Asking, Labels, Tag, Tagged
from sigrl_core.serving.settings import DEFAULT_MODEL, ServeConfig
from sigrl_core.serving.vocabularies import NamedVocabularies
from sigrl_core.tagger import DEFAULT_TOP_K, Tagger, Tags
from sigrl_core.vocabulary import Label, Vocabulary

logger = logging.getLogger(__name__)


class UnknownError(SigrlError):
    """A name of nothing here."""


class UnavailableError(SigrlError):
    """A checkpoint that is served, and cannot be loaded now."""


class Model(NamedTuple):
    """One checkpoint at one time."""

    name: str
    version: str
    """Hash of its manifest, and so of all its files."""
    tagger: Tagger


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of pictures, with the model that answers, whatever takes its place meanwhile."""

    model: Model
    vocabulary: Vocabulary
    top_k: int | None
    threshold: float | Literal["calibrated"] | None
    heat_maps: bool


class Job(NamedTuple):
    """One request, its pictures decoded."""

    question: Question
    crops: Sequence[np.ndarray | ImageError]


class Service:
    """Answers with the checkpoints of a configuration.

    Args:
        config: what is served.
        device: where models compute.

    Raises:
        CheckpointError: one of them cannot be loaded.
    """

    def __init__(self, config: ServeConfig, device: str = "cpu") -> None:
        self.config, self.device = config, device
        kept = config.vocabularies or storage.join(config.checkpoint, "vocabularies")
        self.vocabularies = NamedVocabularies(kept, config.max_vocabularies)
        self.models: dict[str, Model] = {}
        self._loading = threading.Lock()
        self.refresh(config, strict=True)

    def refresh(self, config: ServeConfig | None = None, strict: bool = False) -> list[str]:
        """Loads what is new in the places of the checkpoints in use, and returns the names of those; what is in use
        stays in use until its successor has been loaded, and where that fails.

        Raises:
            CheckpointError: a checkpoint cannot be loaded, with `strict`.
        """
        with self._loading:
            config = config or self.config
            models = {name: model for name, model in self.models.items() if name in config.checkpoints}
            changed = []
            for name, uri in config.checkpoints.items():
                try:
                    version = checkpoint_version(uri)
                    if name not in models and name != DEFAULT_MODEL:
                        continue  # until it is asked for
                    if name in models and models[name].version == version and uri == self.config.checkpoints.get(name):
                        continue
                    models[name] = self._load(name, uri, version, config)
                    changed.append(name)
                except (SigrlError, OSError) as error:
                    if strict or DEFAULT_MODEL not in models:
                        raise
                    logger.warning("model %s stays as it is: %s", name, error)
            self.config, self.models = config, models
            return changed

    def _load(self, name: str, uri: str, version: str, config: ServeConfig) -> Model:
        tagger = Tagger.load(uri, self.device, precision=config.precision)
        tagger.ask(tagger.vocabulary)
        return Model(name, version, tagger)

    def model(self, name: str | None) -> Model:
        """A model by its name, loaded where it is not; `unload` lets it go.

        Raises:
            UnknownError: there is none of that name.
            UnavailableError: it cannot be loaded now.
        """
        name = name or DEFAULT_MODEL
        if found := self.models.get(name):
            return found
        with self._loading:
            if found := self.models.get(name):
                return found
            uri = self.config.checkpoints.get(name)
            if uri is None:
                known = ", ".join(sorted(self.config.checkpoints))
                raise UnknownError(f"model: there is none of that name; known are {known}")
            try:
                found = self._load(name, uri, checkpoint_version(uri), self.config)
            except (SigrlError, OSError) as error:
                logger.warning("model %s cannot be loaded: %s", name, error)
                raise UnavailableError(f"model: {name} cannot be loaded now") from error
            self.models = {**self.models, name: found}
            return found

    def unload(self, name: str) -> None:
        """Lets a model go; requests that are at it keep it until they are answered."""
        with self._loading:
            self.models = {other: model for other, model in self.models.items() if other != name}

    def question(self, asking: Asking) -> Question:
        """Takes some seconds for labels that are asked for the first time.

        Raises:
            UnknownError: no such model or label list.
            UnavailableError: the model cannot be loaded now.
            VocabularyError: labels that are none.
            CheckpointError: a threshold, and the model is not calibrated.
        """
        model = self.model(asking.model)
        if asking.labels is not None and asking.vocabulary is not None:
            raise VocabularyError("labels, vocabulary: both are given; leave one away")
        vocabulary, named = model.tagger.vocabulary, False
        if asking.labels is not None:
            vocabulary = self.vocabulary_of(asking.labels)
        elif asking.vocabulary is not None:
            vocabulary, named = self.vocabulary(asking.vocabulary), True
        if asking.threshold is not None and model.tagger.checkpoint.calibration is None:
            raise CheckpointError(
                "threshold: this model is not calibrated, so it has no probabilities; leave threshold away, or run "
                "calibrate.py on its checkpoint"
            )
        self._ask(model, vocabulary, keep=named)
        return Question(
            model=model,
            vocabulary=vocabulary,
            top_k=asking.top_k,
            threshold=asking.threshold,
            heat_maps=asking.heatmap,
        )

    def vocabulary(self, name: str) -> Vocabulary:
        """A label list that is kept here; raises UnknownError."""
        if (found := self.vocabularies.get(name)) is None:
            raise UnknownError("vocabulary: there is no label list of that name; POST /v1/vocabularies makes one")
        return found

    def vocabulary_of(self, labels: Labels) -> Vocabulary:
        """Raises VocabularyError: too many, or one twice."""
        if len(labels) > self.config.max_labels:
            raise VocabularyError(f"labels: {len(labels)} are given; at most {self.config.max_labels} are taken")
        rows = [
            Label(name=each.strip())
            if isinstance(each, str)
            else Label(name=each.label.strip(), prompts=tuple(each.prompts), synonyms=tuple(each.synonyms))
            for each in labels
        ]
        return Vocabulary(tuple(rows))

    def keep(self, name: str, labels: Labels) -> tuple[Vocabulary, bool]:
        """Keeps a label list under a name, embedded for every model; returns it, and whether it is new."""
        vocabulary = self.vocabulary_of(labels)
        new = self.vocabularies.put(name, vocabulary)
        for model in self.models.values():
            self._ask(model, vocabulary, keep=True)
        return vocabulary, new

    def _ask(self, model: Model, vocabulary: Vocabulary, keep: bool) -> None:
        """Has the labels embedded, by what was kept where they have a name."""
        tagger = model.tagger
        if not keep or tagger.knows(vocabulary):
            tagger.ask(vocabulary)
            return
        kept_CD = self.vocabularies.embeddings(vocabulary, model.version)
        asked = tagger.ask(vocabulary, texts_CD=kept_CD)
        if kept_CD is None:
            self.vocabularies.keep_embeddings(vocabulary, model.version, asked.labels_CD)

    def crop(self, data: bytes, model: Model) -> np.ndarray | ImageError:
        """A picture as the model takes it, or why there is none."""
        try:
            return images.centre_crop_array(data, model.tagger.recogniser.backbone.image_size, self.config.max_pixels)
        except ImageError as error:
            return error

    def answer(self, jobs: Sequence[Job]) -> list[list[Tagged]]:
        """Tags the pictures of all requests; those that ask the same go through the model together."""
        answers: list[list[Tagged]] = [[] for _ in jobs]
        alike: dict[tuple, list[int]] = {}
        for number, (question, _) in enumerate(jobs):
            key = (id(question.model), question.vocabulary.hash, question.threshold, question.heat_maps)
            alike.setdefault(key, []).append(number)
        for numbers in alike.values():
            question = _most(jobs[number].question for number in numbers)
            crops = (crop for number in numbers for crop in jobs[number].crops)
            made: list[Tags] = []
            while some := list(islice(crops, self.config.batch_size)):
                made += question.model.tagger.tag(
                    some,
                    question.vocabulary,
                    top_k=question.top_k,
                    threshold=question.threshold,
                    heat_maps=question.heat_maps,
                )
            tagged = iter(made)
            for number in numbers:
                answers[number] = [
                    _told(tags, jobs[number].question) for tags in islice(tagged, len(jobs[number].crops))
                ]
        return answers


def _most(questions) -> Question:
    """The one that asks for most tags; the others have the first of these."""
    questions = list(questions)
    if any(_count(each) is None for each in questions):
        return replace(questions[0], top_k=None)
    return max(questions, key=lambda each: _count(each) or 0)


def _count(question: Question) -> int | None:
    return DEFAULT_TOP_K if question.top_k is None and question.threshold is None else question.top_k


def _told(tags: Tags, question: Question) -> Tagged:
    if tags.error:
        return Tagged(tags=[], error=tags.error)
    maps = [base64.b64encode(to_png(heat)).decode() for heat in tags.heat_maps] or [None] * len(tags.labels)
    told = [
        Tag(label=label, score=score, heatmap=heat)
        for label, score, heat in zip(tags.labels, tags.scores, maps, strict=True)
    ]
    return Tagged(tags=told[: _count(question)])
