"""A client of the HTTP interface that retries requests.

Example::

    from sigrl_core.serving.client import Client

    client = Client("http://localhost:8000", key="...")
    for result in client.tag(["cat.jpg", "dog.jpg"], labels=["cat", "dog"]).results:
        print(result.tags)
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
"""Ray Serve routes a request with this header to a replica that has loaded the named model."""
_RETRY_STATUSES = (429, 502, 503, 504)


class ServerError(SigrlError):
    """A request that failed.

    Args:
        status: HTTP status; 0 if the server did not answer.
        detail: of the problem document.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail

    def __reduce__(self):
        return type(self), (self.status, self.detail)


class Client:
    """A connection to one server.

    Args:
        url: http://host:port.
        key: API key, if the server requires one.
        timeout: maximum seconds of one attempt.
        patience: seconds to retry while the server is overloaded, is being replaced, or does not answer.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = 60.0, patience: float = 60.0) -> None:
        self.url, self.timeout, self.patience = url.rstrip("/"), timeout, patience
        self.session = requests.Session()
        if key:
            self.session.headers["Authorization"] = f"Bearer {key}"

    def tag(
        self,
        images: Sequence[str | Path | bytes],
        *,
        labels: Sequence[str | dict[str, Any]] | None = None,
        vocabulary: str | None = None,
        top_k: int | None = None,
        threshold: float | Literal["calibrated"] | None = None,
        heatmap: bool = False,
        model: str | None = None,
    ) -> TagResponse:
        """Tags images, given as paths or encoded files; for the options see `messages.TagOptions`.

        Raises:
            ServerError: the server rejects the request, or all attempts failed.
        """
        files = [
            ("images", (Path(each).name, Path(each).read_bytes()) if isinstance(each, str | Path) else ("", each))
            for each in images
        ]
        options = {"vocabulary": vocabulary, "top_k": top_k, "model": model, "threshold": threshold}
        form = {name: str(value) for name, value in options.items() if value is not None}
        if labels is not None:
            form["labels"] = json.dumps(list(labels))
        if heatmap:
            form["heatmap"] = "true"
        headers = {MODEL_HEADER: model} if model else {}
        return TagResponse.model_validate(self._request("POST", "/v1/tag", files=files, data=form, headers=headers))

    def model(self, name: str | None = None) -> ModelResponse:
        """Describes a model; None is the default model."""
        return ModelResponse.model_validate(self._request("GET", "/v1/model", params=name and {"model": name}))

    def vocabulary(self, model: str | None = None) -> VocabularyResponse:
        """Returns a model's own labels."""
        return VocabularyResponse.model_validate(
            self._request("GET", "/v1/vocabulary", params=model and {"model": model})
        )

    def vocabularies(self) -> list[str]:
        """Returns the names of the stored label lists."""
        return VocabularyNames.model_validate(self._request("GET", "/v1/vocabularies")).names

    def keep_vocabulary(self, name: str, labels: Sequence[str | dict[str, Any]]) -> VocabularyResponse:
        """Stores a label list on the server under a name."""
        payload = {"name": name, "labels": list(labels)}
        return VocabularyResponse.model_validate(self._request("POST", "/v1/vocabularies", json=payload))

    def _request(self, method: str, path: str, **arguments: Any) -> Any:
        deadline, backoff = time.monotonic() + self.patience, 0.2
        while True:
            wait, backoff = backoff, min(5.0, 2 * backoff)
            try:
                response = self.session.request(method, self.url + path, timeout=self.timeout, **arguments)
            except (requests.ConnectionError, requests.Timeout) as error:
                failure = ServerError(
                    0, f"{self.url}: no answer ({type(error).__name__}); check that the server is running"
                )
            else:
                if response.ok:
                    return response.json()
                failure = ServerError(response.status_code, _detail(response))
                if response.status_code not in _RETRY_STATUSES:
                    raise failure
                retry_after = response.headers.get("Retry-After", "")
                wait = float(retry_after) if retry_after.isdigit() else wait
            if time.monotonic() + wait > deadline:
                raise failure
            time.sleep(wait)


def _detail(response: requests.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return response.text[:300] or f"the server answered {response.status_code}"
