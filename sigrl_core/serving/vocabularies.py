"""Label lists that clients store under a name, in a folder that all replicas and later servers share.

Files::

    FOLDER/NAME.json                          the labels; never changed, so that no replica caches an old version
    FOLDER/embeddings/HASH-HASH.safetensors   text embeddings; named by the hashes of the labels and of the checkpoint
"""

from __future__ import annotations

import re

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sigrl_core.errors import StorageError, VocabularyError
from sigrl_core.io import storage
from sigrl_core.labels.vocabulary import Vocabulary

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""Names of label lists; valid as file names on every system."""


class NameTakenError(VocabularyError):
    """The name belongs to a list of other labels."""


class VocabularyStore:
    """Label lists by name.

    Args:
        folder: local or s3://.
        max_vocabularies: maximum number of lists.
    """

    def __init__(self, folder: str, max_vocabularies: int) -> None:
        self.folder, self.max_vocabularies = storage.absolute(folder), max_vocabularies
        self._cache: dict[str, Vocabulary] = {}

    def names(self) -> list[str]:
        """Returns the sorted names of all lists."""
        if not storage.exists(self.folder):
            return []
        files = storage.list_files(self.folder, (".json",))
        return sorted(name for file in files if NAME.fullmatch(name := file.path.removesuffix(".json")))

    def get(self, name: str) -> Vocabulary | None:
        """Returns the list of that name; None if there is none."""
        if name not in self._cache and NAME.fullmatch(name):
            uri = storage.join(self.folder, f"{name}.json")
            if not storage.exists(uri):
                return None
            self._cache[name] = Vocabulary.parse(storage.read_bytes(uri).decode(), uri)
        return self._cache.get(name)

    def put(self, name: str, vocabulary: Vocabulary) -> bool:
        """Stores a list under a name; returns whether it is new.

        Raises:
            VocabularyError: invalid name, or too many lists.
            NameTakenError: another list has that name.
            StorageError: the list cannot be written.
        """
        if not NAME.fullmatch(name):
            raise VocabularyError("name: expected 1 to 64 of a to z, 0 to 9, - and _, not starting with - or _")
        if (existing := self.get(name)) is not None:
            if existing.hash != vocabulary.hash:
                raise NameTakenError(
                    f"name: {name} is taken by another list of {len(existing)} labels; choose another name"
                )
            return False
        if len(self.names()) >= self.max_vocabularies:
            raise VocabularyError(
                f"vocabularies: the server has its maximum of {self.max_vocabularies} lists; send labels instead"
            )
        storage.make_folder(self.folder)
        storage.write_bytes(storage.join(self.folder, f"{name}.json"), vocabulary.to_json().encode())
        self._cache[name] = vocabulary
        return True

    # ---- text embeddings: computing them takes seconds for a long list ----

    def get_embeddings(self, vocabulary: Vocabulary, checkpoint: str) -> Tensor | None:
        """Returns stored text embeddings [C,D]; None if there are none or they are damaged."""
        uri = self._embeddings_uri(vocabulary, checkpoint)
        try:
            return load(storage.read_bytes(uri))["labels_CD"] if storage.exists(uri) else None
        except (StorageError, SafetensorError, KeyError):
            return None

    def put_embeddings(self, vocabulary: Vocabulary, checkpoint: str, labels_CD: Tensor) -> None:
        """Stores text embeddings for other replicas and later servers."""
        storage.make_folder(storage.join(self.folder, "embeddings"))
        data = save({"labels_CD": labels_CD.detach().to("cpu", torch.float32).contiguous()})
        storage.write_bytes(self._embeddings_uri(vocabulary, checkpoint), data)

    def _embeddings_uri(self, vocabulary: Vocabulary, checkpoint: str) -> str:
        return storage.join(self.folder, "embeddings", f"{vocabulary.hash[:32]}-{checkpoint[:32]}.safetensors")
