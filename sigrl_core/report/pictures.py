"""Pictures of a shard folder as a page carries them: small, and inside the page itself."""

from __future__ import annotations

import base64

from PIL import Image

from sigrl_core import images

THUMBNAIL = 320
"""Most pixels of the long side of a picture on a page."""


def data_uri(picture: Image.Image) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(images.encode_jpeg(picture, 85)).decode()}"


def thumbnail(jpeg: bytes, attributes: str) -> str:
    """A picture made small, as an `img` that is drawn when it comes into view.

    Args:
        attributes: `alt` and whatever else the element has, escaped.
    """
    picture = images.decode(jpeg, short_side=THUMBNAIL)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    small = ' class="small"' if min(picture.size) < 100 else ""
    width, height = picture.size
    return f'<img src="{data_uri(picture)}" {attributes} width="{width}" height="{height}" loading="lazy"{small}>'
