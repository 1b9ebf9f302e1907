"""Small copies of images, inside the page itself."""

from __future__ import annotations

import base64
from typing import NamedTuple

from PIL import Image

from sigrl_core.data import images

THUMBNAIL = 320
"""Maximum number of pixels of the long side of an image on a page."""


class Thumbnail(NamedTuple):
    """The attributes of an `img` element; `small` images are shown with sharp pixels."""

    src: str
    width: int
    height: int
    small: bool


def data_uri(image: Image.Image) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(images.encode_jpeg(image, 85)).decode()}"


def thumbnail(jpeg: bytes) -> Thumbnail:
    image = images.decode(jpeg, short_side=THUMBNAIL)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    return Thumbnail(data_uri(image), *image.size, small=min(image.size) < 100)
