"""What goes over the wire."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Threshold = Annotated[float, Field(ge=0, le=1)] | Literal["calibrated"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LabelRow(Strict):
    """One label, as in a vocabulary file."""

    label: str = Field(min_length=1, max_length=200, examples=["tabby cat"])
    prompts: list[Annotated[str, Field(min_length=1, max_length=400)]] = Field(
        default=[], max_length=20, description="Descriptions that are read in place of the name."
    )
    synonyms: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        default=[], max_length=20, description="Other names."
    )


Labels = list[Annotated[str, Field(min_length=1, max_length=200)] | LabelRow]


class Asking(Strict):
    """What is asked of pictures."""

    model: str | None = Field(default=None, max_length=64, description="Name of a model; the default one without.")
    vocabulary: str | None = Field(default=None, max_length=64, description="Name of a label list that is kept here.")
    labels: Labels | None = Field(
        default=None, min_length=1, description="Any labels, seen in training or not, in the place of the model's own."
    )
    top_k: int | None = Field(
        default=None, ge=1, le=100_000, description="Tags for each picture; 5 without a threshold."
    )
    threshold: Threshold | None = Field(
        default=None,
        description="Least probability of a tag, or `calibrated`: each label's own. Scores are probabilities then.",
    )
    heatmap: bool = Field(default=False, description="Adds where each tag fits.")


class TagRequest(Asking):
    """Pictures as base64 in JSON."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"images": ["/9j/4AAQ...AQ=="], "top_k": 3}}
    )

    images: list[Annotated[str, Field(json_schema_extra={"format": "byte"})]] = Field(min_length=1)


class Tag(BaseModel):
    label: str
    score: float = Field(description="Ranks labels within those asked; a probability where a threshold was given.")
    heatmap: str | None = Field(
        default=None, description="A small grey PNG as base64, bright where the label fits, of the centre square."
    )


class Tagged(BaseModel):
    """One picture."""

    tags: list[Tag] = Field(description="Best first.")
    error: str | None = Field(default=None, description="Why it could not be read, in the place of tags.")


class TagResponse(BaseModel):
    model: str = Field(description="Name of the model.")
    checkpoint: str = Field(description="Hash of the checkpoint that answered.")
    vocabulary: str = Field(description="Hash of the labels asked.")
    labels: int = Field(description="How many were asked.")
    probabilities: bool = Field(description="Whether scores are calibrated probabilities.")
    results: list[Tagged] = Field(description="In the order of the pictures.")


class VocabularyResponse(BaseModel):
    name: str | None = None
    hash: str
    labels: list[dict[str, Any]] = Field(description="Rows of a vocabulary file.")


class NewVocabulary(Strict):
    """Labels to keep under a name."""

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
    others: list[str] = Field(description="Other models here, by name.")
    limits: dict[str, int]
