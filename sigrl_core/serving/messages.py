"""The JSON messages of the HTTP interface."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, computed_field

Threshold = Annotated[float, Field(ge=0, le=1)] | Literal["calibrated"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LabelRow(Strict):
    """One label, as in a vocabulary file."""

    label: str = Field(min_length=1, max_length=200, examples=["tabby cat"])
    prompts: list[Annotated[str, Field(min_length=1, max_length=400)]] = Field(
        default=[], max_length=20, description="Descriptions that are encoded instead of the name."
    )
    synonyms: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        default=[], max_length=20, description="Other names."
    )


Labels = list[Annotated[str, Field(min_length=1, max_length=200)] | LabelRow]


class TagOptions(Strict):
    """How to tag images."""

    model: str | None = Field(default=None, max_length=64, description="Name of a model; default: the default model.")
    vocabulary: str | None = Field(default=None, max_length=64, description="Name of a label list on this server.")
    labels: Labels | None = Field(
        default=None, min_length=1, description="Any labels, seen in training or not, instead of the model's own."
    )
    top_k: int | None = Field(
        default=None, ge=1, le=100_000, description="Maximum number of tags per image; default 5 without a threshold."
    )
    threshold: Threshold | None = Field(
        default=None,
        description="Minimum probability of a tag, or `calibrated`: each label's own. Scores are then probabilities.",
    )
    heatmap: bool = Field(default=False, description="Adds a heat map to each tag.")


class TagRequest(TagOptions):
    """Images as base64 in JSON."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"images": ["/9j/4AAQ...AQ=="], "top_k": 3}}
    )

    images: list[Annotated[str, Field(json_schema_extra={"format": "byte"})]] = Field(min_length=1)


class Tag(BaseModel):
    label: str
    score: float = Field(
        description="Ranks the labels of the vocabulary; a probability if the request has a threshold."
    )
    heatmap: str | None = Field(
        default=None,
        description="Small greyscale PNG as base64, bright where the label fits; covers the image's centre square.",
    )


class TagResult(BaseModel):
    """The tags of one image."""

    tags: list[Tag] = Field(description="Best first.")
    error: str | None = Field(default=None, description="Why the image could not be read; absent if it could.")
    detail: str | None = Field(default=None, description="What the decoder found; absent if the image could be read.")


class TagResponse(BaseModel):
    model: str = Field(description="Name of the model.")
    checkpoint: str = Field(description="Hash of the checkpoint.")
    vocabulary: str = Field(description="Hash of the label list.")
    labels: int = Field(description="Number of labels that were scored.")
    probabilities: bool = Field(description="Whether scores are calibrated probabilities.")
    results: list[TagResult] = Field(description="In the order of the images.")


class VocabularyResponse(BaseModel):
    name: str | None = None
    hash: str
    labels: list[dict[str, Any]] = Field(description="Rows of a vocabulary file.")


class NewVocabulary(Strict):
    """A label list to store under a name."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9_-]{0,63}$", examples=["shoes"])
    labels: Labels = Field(min_length=1, examples=[["boot", "sandal", "sneaker"]])


class VocabularyNames(BaseModel):
    names: list[str]


class ModelResponse(BaseModel):
    name: str
    checkpoint: str = Field(description="Hash of the checkpoint.")
    code_version: str
    backbone: str
    image_size: int
    seen_labels: int
    unseen_labels: int
    calibrated: bool
    other_models: list[str] = Field(
        validation_alias=AliasChoices("other_models", "others"),  # servers of version 0.1.0 send `others` only
        description="Names of the other models on this server.",
    )
    limits: dict[str, int]

    @computed_field(alias="others", description="Use other_models.", json_schema_extra={"deprecated": True})
    @property
    def deprecated_other_models(self) -> list[str]:
        """The key of version 0.1.0."""
        return self.other_models
