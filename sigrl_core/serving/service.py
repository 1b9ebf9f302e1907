"""Holds the served models and tags the images of requests; independent of HTTP and of Ray."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np

from sigrl_core.config.stages import DEFAULT_MODEL, ServeConfig
from sigrl_core.data import images
from sigrl_core.errors import CheckpointError, ImageError, SigrlError, VocabularyError
from sigrl_core.inference.heat_map import to_png
from sigrl_core.inference.tagger import DEFAULT_TOP_K, Tagger, Tags
from sigrl_core.io import storage
from sigrl_core.labels.vocabulary import Label, Vocabulary
from sigrl_core.model.checkpoint import checkpoint_version
from sigrl_core.serving.messages import Labels, Tag, TagOptions, TagResult
from sigrl_core.serving.vocabularies import VocabularyStore

logger = logging.getLogger(__name__)


class NotFoundError(SigrlError):
    """A model or label list that does not exist."""


class ModelUnavailableError(SigrlError):
    """A configured checkpoint that cannot be loaded now."""


class LoadedModel(NamedTuple):
    """One version of a checkpoint in memory."""

    name: str
    tagger: Tagger

    @property
    def version(self) -> str:
        """Hash of the checkpoint that was loaded, see `Checkpoint.sha256`."""
        return self.tagger.checkpoint.sha256


@dataclass(frozen=True, kw_only=True)
class TagQuery:
    """One request: what to tag, how, and with which model. It keeps its model even if a new version is loaded.

    Attributes:
        images: decoded, each or the reason why it is unreadable.
    """

    model: LoadedModel
    vocabulary: Vocabulary
    top_k: int | None
    threshold: float | Literal["calibrated"] | None
    heat_maps: bool
    images: Sequence[np.ndarray | ImageError] = ()

    @property
    def max_tags(self) -> int | None:
        """Maximum number of tags per image; None returns every label that reaches the threshold."""
        return DEFAULT_TOP_K if self.top_k is None and self.threshold is None else self.top_k


class Service:
    """Tags images with the checkpoints of a configuration.

    The default model is loaded at once, the others at their first use.

    Args:
        config: checkpoints and limits.
        device: torch device of the models.

    Raises:
        CheckpointError: the default checkpoint cannot be loaded.
    """

    def __init__(self, config: ServeConfig, device: str = "cpu") -> None:
        self.config, self.device = config, device
        folder = config.vocabularies or storage.join(config.checkpoint, "vocabularies")
        self.vocabularies = VocabularyStore(folder, config.max_vocabularies)
        self.models: dict[str, LoadedModel] = {}
        self._loading = threading.Lock()
        self.refresh(config, strict=True)

    # ---- models ----

    def refresh(self, config: ServeConfig | None = None, strict: bool = False) -> list[str]:
        """Loads new versions of the checkpoints in use and returns the names of the changed models.

        A model stays in use until its new version is loaded, also if loading fails.

        Args:
            config: replaces the current configuration; None keeps it.
            strict: raises errors of loading; otherwise they are logged.

        Raises:
            CheckpointError: a checkpoint cannot be loaded (`strict`).
        """
        with self._loading:
            config = config or self.config
            models = {name: model for name, model in self.models.items() if name in config.checkpoints}
            changed = []
            for name, uri in config.checkpoints.items():
                try:
                    version = checkpoint_version(uri)
                    if name not in models and name != DEFAULT_MODEL:
                        continue  # loaded at its first use
                    if name in models and models[name].version == version and uri == self.config.checkpoints.get(name):
                        continue
                    models[name] = self._load(name, uri, config)
                    changed.append(name)
                except (SigrlError, OSError) as error:
                    if strict or DEFAULT_MODEL not in models:
                        raise
                    logger.warning("model %s: the current version stays in use: %s", name, error)
            self.config, self.models = config, models
            return changed

    def _load(self, name: str, uri: str, config: ServeConfig) -> LoadedModel:
        tagger = Tagger.load(uri, self.device, precision=config.precision)
        tagger.encode_labels(tagger.vocabulary)
        return LoadedModel(name, tagger)

    def model(self, name: str | None) -> LoadedModel:
        """Returns a model, which it loads if necessary; None is the default model.

        Raises:
            NotFoundError: there is no model of that name.
            ModelUnavailableError: the model cannot be loaded now.
        """
        name = name or DEFAULT_MODEL
        if model := self.models.get(name):
            return model
        with self._loading:
            if model := self.models.get(name):
                return model
            uri = self.config.checkpoints.get(name)
            if uri is None:
                names = ", ".join(sorted(self.config.checkpoints))
                raise NotFoundError(f"model: no model of that name; expected one of {names}")
            try:
                model = self._load(name, uri, self.config)
            except (SigrlError, OSError) as error:
                logger.warning("model %s cannot be loaded: %s", name, error)
                raise ModelUnavailableError(f"model: {name} cannot be loaded now; retry later") from error
            self.models = {**self.models, name: model}
            return model

    def unload(self, name: str) -> None:
        """Removes a model from memory. Queries that are being processed keep it until they are done."""
        with self._loading:
            self.models = {each: model for each, model in self.models.items() if each != name}

    # ---- label lists ----

    def named_vocabulary(self, name: str) -> Vocabulary:
        """Returns a stored label list; raises NotFoundError if there is none of that name."""
        if (vocabulary := self.vocabularies.get(name)) is None:
            raise NotFoundError("vocabulary: no label list of that name; POST /v1/vocabularies creates one")
        return vocabulary

    def parse_labels(self, labels: Labels) -> Vocabulary:
        """Converts a request's labels; raises VocabularyError if there are too many or duplicates."""
        if len(labels) > self.config.max_labels:
            raise VocabularyError(f"labels: found {len(labels)}, expected at most {self.config.max_labels}")
        rows = [
            Label(name=each.strip())
            if isinstance(each, str)
            else Label(name=each.label.strip(), prompts=tuple(each.prompts), synonyms=tuple(each.synonyms))
            for each in labels
        ]
        return Vocabulary(tuple(rows))

    def store_vocabulary(self, name: str, labels: Labels) -> tuple[Vocabulary, bool]:
        """Stores a label list under a name, with its embeddings by every loaded model.

        Returns:
            The list, and whether it is new.
        """
        vocabulary = self.parse_labels(labels)
        is_new = self.vocabularies.put(name, vocabulary)
        for model in self.models.values():
            self._encode_labels(model, vocabulary, is_stored=True)
        return vocabulary, is_new

    def _encode_labels(self, model: LoadedModel, vocabulary: Vocabulary, is_stored: bool) -> None:
        """Encodes labels into the tagger's cache; for a stored list it reads or writes the stored embeddings."""
        tagger = model.tagger
        if not is_stored or tagger.is_encoded(vocabulary):
            tagger.encode_labels(vocabulary)
            return
        stored_CD = self.vocabularies.get_embeddings(vocabulary, model.version)
        label_set = tagger.encode_labels(vocabulary, texts_CD=stored_CD)
        if stored_CD is None:
            self.vocabularies.put_embeddings(vocabulary, model.version, label_set.labels_CD)

    # ---- requests ----

    def create_query(self, options: TagOptions) -> TagQuery:
        """Resolves a request's model and labels. Labels that are new to the model take some seconds to encode.

        Raises:
            NotFoundError: no such model or label list.
            ModelUnavailableError: the model cannot be loaded now.
            VocabularyError: invalid labels.
            CheckpointError: the request has a threshold, and the model is not calibrated.
        """
        model = self.model(options.model)
        if options.labels is not None and options.vocabulary is not None:
            raise VocabularyError("labels, vocabulary: found both, expected at most one of them")
        vocabulary, is_stored = model.tagger.vocabulary, False
        if options.labels is not None:
            vocabulary = self.parse_labels(options.labels)
        elif options.vocabulary is not None:
            vocabulary, is_stored = self.named_vocabulary(options.vocabulary), True
        if options.threshold is not None and model.tagger.checkpoint.calibration is None:
            raise CheckpointError(
                "threshold: this model is not calibrated, so it has no probabilities; omit threshold, or run "
                "calibrate.py on its checkpoint"
            )
        self._encode_labels(model, vocabulary, is_stored)
        return TagQuery(
            model=model,
            vocabulary=vocabulary,
            top_k=options.top_k,
            threshold=options.threshold,
            heat_maps=options.heatmap,
        )

    def decode(self, file: bytes, model: LoadedModel) -> np.ndarray | ImageError:
        """Decodes an image to the model's input size, or returns the reason why it is unreadable."""
        try:
            return images.centre_crop_array(file, model.tagger.model.backbone.image_size, self.config.max_pixels)
        except ImageError as error:
            return error

    def tag(self, queries: Sequence[TagQuery]) -> list[list[TagResult]]:
        """Tags the images of all queries. Queries with the same model, labels and threshold share batches."""
        results: list[list[TagResult]] = [[] for _ in queries]
        groups: dict[tuple, list[int]] = {}
        for number, query in enumerate(queries):
            key = (id(query.model), query.vocabulary.hash, query.threshold, query.heat_maps)
            groups.setdefault(key, []).append(number)
        for numbers in groups.values():
            tags = iter(self._tag_group([queries[number] for number in numbers]))
            for number in numbers:
                query = queries[number]
                results[number] = [_to_result(each, query) for each in islice(tags, len(query.images))]
        return results

    def _tag_group(self, queries: Sequence[TagQuery]) -> list[Tags]:
        """Tags the images of queries that differ only in `top_k`, with the largest one."""
        counts = [query.max_tags for query in queries]
        max_tags = None if None in counts else max(count for count in counts if count is not None)
        query, tags = queries[0], list[Tags]()
        pending = (image for each in queries for image in each.images)
        while batch := list(islice(pending, self.config.batch_size)):
            tags += query.model.tagger.tag(
                batch, query.vocabulary, top_k=max_tags, threshold=query.threshold, heat_maps=query.heat_maps
            )
        return tags


def _to_result(tags: Tags, query: TagQuery) -> TagResult:
    if tags.error:
        return TagResult(tags=[], error=tags.error, detail=tags.detail or None)
    heat_maps = [base64.b64encode(to_png(heat)).decode() for heat in tags.heat_maps] or [None] * len(tags.labels)
    rows = [
        Tag(label=label, score=score, heatmap=heat)
        for label, score, heat in zip(tags.labels, tags.scores, heat_maps, strict=True)
    ]
    return TagResult(tags=rows[: query.max_tags])
