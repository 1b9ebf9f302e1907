"""Label lists that clients name: kept in a folder, so that every replica sees them, and the next start too.

FOLDER/NAME.json                       the labels; never changed once there, so that no replica has an old one
FOLDER/embeddings/HASH-HASH.safetensors   their text embeddings by one model: of vocabulary and of backbone
"""

from __future__ import annotations

import re

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sigrl_core import storage
from sigrl_core.errors import StorageError, VocabularyError
from sigrl_core.vocabulary import Vocabulary

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""What a list may be called: safe as a file's name everywhere."""


class TakenError(VocabularyError):
    """A name under which other labels are kept."""


class NamedVocabularies:
    """Label lists by name.

    Args:
        folder: local or s3://.
        most: lists that may be kept.
    """

    def __init__(self, folder: str, most: int) -> None:
        self.folder, self.most = storage.absolute(folder), most
        self._known: dict[str, Vocabulary] = {}

    def names(self) -> list[str]:
        """In order."""
        if not storage.exists(self.folder):
            return []
        files = storage.list_files(self.folder, (".json",))
        return sorted(name for file in files if NAME.fullmatch(name := file.path.removesuffix(".json")))

    def get(self, name: str) -> Vocabulary | None:
        """The list of that name; None where there is none."""
        if name not in self._known and NAME.fullmatch(name):
            where = storage.join(self.folder, f"{name}.json")
            if not storage.exists(where):
                return None
            self._known[name] = Vocabulary.parse(storage.read_bytes(where).decode(), where)
        return self._known.get(name)

    def put(self, name: str, vocabulary: Vocabulary) -> bool:
        """Keeps a list under a name; returns whether it was not there before.

        Raises:
            VocabularyError: no name, or too many lists.
            TakenError: other labels have that name.
            StorageError: it cannot be kept.
        """
        if not NAME.fullmatch(name):
            raise VocabularyError("name: expected 1 to 64 of a to z, 0 to 9, - and _, not starting with - or _")
        if (known := self.get(name)) is not None:
            if known.hash != vocabulary.hash:
                raise TakenError(f"name: {name} is taken by another list of {len(known)} labels; choose another name")
            return False
        if len(self.names()) >= self.most:
            raise VocabularyError(f"vocabularies: there are {self.most} already, as many as are kept")
        storage.make_folder(self.folder)
        storage.write_bytes(storage.join(self.folder, f"{name}.json"), vocabulary.to_json().encode())
        self._known[name] = vocabulary
        return True

    # ---- text embeddings, which take seconds to compute for long lists ----

    def embeddings(self, vocabulary: Vocabulary, backbone: str) -> Tensor | None:
        """Text embeddings [C,D] that were kept; None where there are none that can be read."""
        where = self._embeddings_path(vocabulary, backbone)
        try:
            return load(storage.read_bytes(where))["labels_CD"] if storage.exists(where) else None
        except (StorageError, SafetensorError, KeyError):
            return None

    def keep_embeddings(self, vocabulary: Vocabulary, backbone: str, labels_CD: Tensor) -> None:
        """Keeps them for other replicas and later starts."""
        storage.make_folder(storage.join(self.folder, "embeddings"))
        data = save({"labels_CD": labels_CD.detach().to("cpu", torch.float32).contiguous()})
        storage.write_bytes(self._embeddings_path(vocabulary, backbone), data)

    def _embeddings_path(self, vocabulary: Vocabulary, backbone: str) -> str:
        return storage.join(self.folder, "embeddings", f"{vocabulary.hash[:32]}-{backbone[:32]}.safetensors")
