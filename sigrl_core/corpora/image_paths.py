"""Finds local copies of images that an annotation tool names by their location in its own store."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import parse_qs, unquote, urlsplit

from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_READABLE = ("s3", "gs", "abfs", "abfss", "file")


class ImagePaths:
    """Translates locations to paths below the folder of images; remembers the result for each folder.

    The longest end of a location that exists below the folder of images is its path: `s3://bucket/cats/1.jpg` is
    `cats/1.jpg` or else `1.jpg`. Only the first image of each folder is looked up.

    Args:
        images: the folder of images.
    """

    def __init__(self, images: str) -> None:
        self._images = images
        self._folders: dict[str, str | None] = {}  # folder -> folder below `images`, None if there is no copy

    def find(self, uri: str, where: str) -> str:
        """Returns the path below the folder of images, or the location itself if it can be read and has no copy.

        Raises:
            CorpusError: a location that cannot be read (http, azureml, or a path of the tool) has no copy; the message
                starts with `where`.
        """
        path = _plain_path(uri)
        folder, name = posixpath.split(path)
        if folder not in self._folders:
            self._folders[folder] = self._find_folder(folder, name)
        below = self._folders[folder]
        if below is not None:
            return posixpath.join(below, name)
        scheme = _SCHEME.match(uri)
        if scheme is not None and scheme[1] in _READABLE:
            return uri
        if scheme is None and not uri.startswith("/"):
            return path
        raise CorpusError(
            f"{where}: image {uri[:200]!r} has no copy below {self._images} (neither {path[:200]!r} nor an end of it); "
            "copy the images there, or check --images"
        )

    def _find_folder(self, folder: str, name: str) -> str | None:
        parts = [part for part in folder.split("/") if part not in ("", ".", "..")]
        for start in range(len(parts) + 1):
            below = "/".join(parts[start:])
            if name and "\0" not in below + name and storage.exists(storage.join(self._images, below, name)):
                return below
        return None


def _plain_path(uri: str) -> str:
    """Returns the path of a location, without scheme, query and the prefix of Azure's data stores."""
    scheme = _SCHEME.match(uri)
    if scheme is not None and scheme[1] in ("http", "https"):
        try:
            return unquote(urlsplit(uri).path)
        except ValueError:  # a malformed host
            return uri
    path = uri if scheme is None else uri[scheme.end() :]
    if scheme is not None and scheme[1] == "azureml":
        return path.partition("/paths/")[2] or path
    if path.startswith("/data/local-files/?"):  # Label Studio's local storage
        return unquote(parse_qs(path.partition("?")[2]).get("d", [""])[0])
    return path
