"""Reads a user's own label embeddings: a .npy file with one row per label."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from sigrl_core.errors import StorageError, VocabularyError
from sigrl_core.io import storage
from sigrl_core.io.checksums import Pinned, sha256_of
from sigrl_core.labels.vocabulary import Vocabulary


def load_embeddings(uri: str, vocabulary: Vocabulary, expected: Pinned | None = None) -> Float[NDArray, "C E"]:
    """Reads embeddings of a vocabulary, in its order, as float32; local or s3://. Pickled objects are refused.

    Args:
        uri: the file.
        vocabulary: the labels of the rows.
        expected: `embeddings_sha256` of the embeddings that a plan recorded; None takes any.

    Raises:
        VocabularyError: not a .npy file of finite numbers with one row per label, a row of zeros, or others than
            `expected`.
    """
    form = f"expected an array of {len(vocabulary)} rows of numbers, one for each label in order"
    try:
        array = np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False)
    except (StorageError, ValueError, EOFError) as error:  # numpy takes any other file for pickled objects
        reason = "no .npy file of numbers" if "contains pickled" in str(error) else error
        raise VocabularyError(f"{uri}: cannot be read as .npy ({reason}); {form}, saved with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiu":
        raise VocabularyError(
            f"{uri}: found {getattr(array, 'dtype', 'several arrays')} of shape {getattr(array, 'shape', '?')}; {form}"
        )
    if len(array) != len(vocabulary):
        raise VocabularyError(f"{uri}: found {len(array)} rows; {form}")
    embeddings_CE = array.astype(np.float32)
    unusable_C = ~np.isfinite(embeddings_CE).all(1) | (embeddings_CE == 0).all(1)
    if unusable_C.any():
        name = vocabulary.names[int(unusable_C.argmax())]
        raise VocabularyError(f"{uri}: the row of label {name!r} is zero or not finite; {form}")
    if expected is not None:
        expected.check(uri, "label embeddings", embeddings_sha256(embeddings_CE), VocabularyError)
    return embeddings_CE


def embeddings_sha256(embeddings_CE: Float[NDArray, "C E"]) -> str:
    """Returns a hash of embeddings, as plans record it."""
    return sha256_of(embeddings_CE.tobytes())
