"""Asks a server for tags.

What waits and asks again is here, so that a script need not::

    from sigrl_core.serving.client import Client

    client = Client("http://localhost:8000", key="...")
    for tagged in client.tag(["cat.jpg", "dog.jpg"], labels=["cat", "dog"]).results:
        print(tagged.tags)
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import requests

from sigrl_core.errors import SigrlError
from sigrl_core.serving.messages import ModelResponse, TagResponse, VocabularyNames, VocabularyResponse

MODEL_HEADER = "serve_multiplexed_model_id"
"""Sends a request where the model that it names is loaded already."""
_AGAIN = (429, 502, 503, 504)
"""Answers after which it may help to ask again."""


class ServerError(SigrlError):
    """What a server refused, or could not do.

    Args:
        status: of HTTP; 0 where it did not answer.
        detail: what it said.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail

    def __reduce__(self):
        return type(self), (self.status, self.detail)


class Client:
    """One server.

    Args:
        url: where it is, http://host:port.
        key: of this client, where the server wants one.
        timeout: seconds that one answer may take.
        patience: seconds to go on asking a server that is busy, is being replaced or does not answer.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = 60.0, patience: float = 60.0) -> None:
        self.url, self.timeout, self.patience = url.rstrip("/"), timeout, patience
        self.session = requests.Session()
        if key:
            self.session.headers["Authorization"] = f"Bearer {key}"

    def tag(
        self,
        pictures: Sequence[str | Path | bytes],
        *,
        labels: Sequence[str | dict[str, Any]] | None = None,
        vocabulary: str | None = None,
        top_k: int | None = None,
        threshold: float | Literal["calibrated"] | None = None,
        heatmap: bool = False,
        model: str | None = None,
    ) -> TagResponse:
        """Tags pictures: paths, or encoded files; see `messages.Asking` for the rest.

        Raises:
            ServerError: the server refuses, or has not answered in time.
        """
        files = [
            ("images", (Path(each).name, Path(each).read_bytes()) if isinstance(each, str | Path) else ("", each))
            for each in pictures
        ]
        asked = {"vocabulary": vocabulary, "top_k": top_k, "model": model, "threshold": threshold}
        form = {name: str(value) for name, value in asked.items() if value is not None}
        if labels is not None:
            form["labels"] = json.dumps(list(labels))
        if heatmap:
            form["heatmap"] = "true"
        headers = {MODEL_HEADER: model} if model else {}
        return TagResponse.model_validate(self._ask("POST", "/v1/tag", files=files, data=form, headers=headers))

    def model(self, name: str | None = None) -> ModelResponse:
        """What answers."""
        return ModelResponse.model_validate(self._ask("GET", "/v1/model", params=name and {"model": name}))

    def vocabulary(self, model: str | None = None) -> VocabularyResponse:
        """A model's own labels."""
        return VocabularyResponse.model_validate(self._ask("GET", "/v1/vocabulary", params=model and {"model": model}))

    def vocabularies(self) -> list[str]:
        """Names of the label lists that the server keeps."""
        return VocabularyNames.model_validate(self._ask("GET", "/v1/vocabularies")).names

    def keep_vocabulary(self, name: str, labels: Sequence[str | dict[str, Any]]) -> VocabularyResponse:
        """Has the server keep a label list under a name."""
        sent = {"name": name, "labels": list(labels)}
        return VocabularyResponse.model_validate(self._ask("POST", "/v1/vocabularies", json=sent))

    def _ask(self, method: str, path: str, **sent: Any) -> Any:
        deadline, pause = time.monotonic() + self.patience, 0.2
        while True:
            wait, pause = pause, min(5.0, 2 * pause)
            try:
                response = self.session.request(method, self.url + path, timeout=self.timeout, **sent)
            except (requests.ConnectionError, requests.Timeout) as error:
                failed = ServerError(0, f"{self.url}: does not answer ({type(error).__name__}); is it running?")
            else:
                if response.ok:
                    return response.json()
                failed = ServerError(response.status_code, _detail(response))
                if response.status_code not in _AGAIN:
                    raise failed
                told = response.headers.get("Retry-After", "")
                wait = float(told) if told.isdigit() else wait
            if time.monotonic() + wait > deadline:
                raise failed
            time.sleep(wait)


def _detail(response: requests.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return response.text[:300] or f"the server answered {response.status_code}"
