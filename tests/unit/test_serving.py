"""The HTTP interface without Ray: results, errors and their texts."""

import asyncio
import base64
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import APIRouter, UploadFile
from PIL import Image
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient

from sigrl_core.config.stages import ServeConfig
from sigrl_core.demo import toybox
from sigrl_core.errors import ConfigError, ImageError, VocabularyError
from sigrl_core.inference.tagger import Tagger
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.plugins import ENDPOINTS, register_endpoint
from sigrl_core.serving import middleware
from sigrl_core.serving.app import create_app
from sigrl_core.serving.handlers import RequestHandler
from sigrl_core.serving.keys import ApiKeys, add_key
from sigrl_core.serving.messages import ModelResponse, TagOptions, TagResult
from sigrl_core.serving.middleware import BodyLimit, ProxyProblems
from sigrl_core.serving.problems import MEDIA_TYPE
from sigrl_core.serving.rates import RateLimiter, TokenBucket, TokenBuckets
from sigrl_core.serving.service import Service, TagQuery
from sigrl_core.serving.vocabularies import NameTakenError, VocabularyStore
from tests.conftest import calibrated_checkpoint, untrained_checkpoint
from tests.serving import app_of

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    return [image.jpeg for image in toybox.scenes("test", range(6), size=64, seed=1)]


@pytest.fixture
def config(checkpoint: Path, tmp_path: Path) -> ServeConfig:
    return ServeConfig(
        checkpoint=str(checkpoint),
        vocabularies=str(tmp_path / "vocabularies"),
        max_body_bytes=300_000,
        max_images=8,
        max_pending_images=16,
        max_labels=50,
        requests_per_minute=6000,
    )


def client_of(config: ServeConfig, keys: ApiKeys | None = None) -> TestClient:
    return TestClient(app_of(config, keys), raise_server_exceptions=False)


@pytest.fixture
def client(config: ServeConfig) -> TestClient:
    return client_of(config)


def files(jpegs: list[bytes]) -> list[tuple]:
    return [("images", (f"{number}.jpg", data, "image/jpeg")) for number, data in enumerate(jpegs)]


def refused(response, status: int, detail: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    body = response.json()
    assert body["status"] == status
    assert detail in body["detail"]


# ---- answers ----


@pytest.mark.parametrize("way", ["form", "json"])
def test_the_same_tags_as_the_tagger(client: TestClient, checkpoint: Path, jpegs: list[bytes], way: str) -> None:
    if way == "form":
        response = client.post("/v1/tag", files=files(jpegs), data={"top_k": "3"})
    else:
        response = client.post("/v1/tag", json={"images": [base64.b64encode(j).decode() for j in jpegs], "top_k": 3})
    assert response.status_code == 200, response.text
    body = response.json()
    expected = Tagger.load(str(checkpoint)).tag(jpegs, top_k=3)
    assert len(body["results"]) == len(jpegs)
    for found, tags in zip(body["results"], expected, strict=True):
        assert [tag["label"] for tag in found["tags"]] == tags.labels
        assert [tag["score"] for tag in found["tags"]] == pytest.approx(tags.scores, abs=1e-5)
        assert "error" not in found
    assert not body["probabilities"]
    assert body["labels"] == len(toybox.vocabulary())


def test_labels_of_ones_own_heat_maps_and_images_that_cannot_be_read(client: TestClient, jpegs: list[bytes]) -> None:
    form = {"labels": "a red ball\na kite\n\nsnow", "heatmap": "true", "top_k": "2"}
    response = client.post("/v1/tag", files=files([jpegs[0], b"nonsense", b"", jpegs[1][:900]]), data=form)
    assert response.status_code == 200, response.text
    good, *bad = response.json()["results"]
    assert {tag["label"] for tag in good["tags"]} < {"a red ball", "a kite", "snow"}
    for tag in good["tags"]:
        heat = np.asarray(Image.open(io.BytesIO(base64.b64decode(tag["heatmap"]))))
        assert heat.min() == 0
        assert heat.max() == 255
    assert [each["error"] for each in bad] == ["not_an_image", "empty", "truncated"]
    assert bad[0]["detail"] == "starts with b'nonsense'"
    assert all(each["detail"] for each in bad)
    assert "detail" not in good
    assert all(each["tags"] == [] for each in bad)
    rows = [{"label": "ball", "prompts": ["a round red toy"]}, "kite"]
    response = client.post("/v1/tag", files=files(jpegs[:1]), data={"labels": json.dumps(rows)})
    assert response.json()["labels"] == 2


def test_a_threshold_asks_for_probabilities(config: ServeConfig, jpegs: list[bytes], tmp_path: Path) -> None:
    refused(
        client_of(config).post("/v1/tag", files=files(jpegs[:1]), data={"threshold": "calibrated"}),
        422,
        "this model is not calibrated",
    )
    service_config = replace(config, checkpoint=str(calibrated_checkpoint(tmp_path / "calibrated")))
    client = client_of(service_config)
    body = client.post("/v1/tag", files=files(jpegs), data={"threshold": "0"}).json()
    assert body["probabilities"]
    assert all(len(each["tags"]) == len(toybox.vocabulary()) for each in body["results"])
    scores = [tag["score"] for each in body["results"] for tag in each["tags"]]
    assert 0 <= min(scores) < max(scores) <= 1
    least = float(np.median(scores))
    body = client.post("/v1/tag", files=files(jpegs), data={"threshold": str(least), "top_k": "1"}).json()
    assert all(tag["score"] >= least for each in body["results"] for tag in each["tags"])
    assert all(len(each["tags"]) <= 1 for each in body["results"])
    assert client.get("/v1/model").json()["calibrated"]


def test_requests_that_ask_the_same_go_through_the_model_together(
    config: ServeConfig, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(config)
    model, sizes = service.model(None), []
    tag = model.tagger.tag
    monkeypatch.setattr(model.tagger, "tag", lambda crops, *a, **k: (sizes.append(len(crops)), tag(crops, *a, **k))[1])
    options = [TagOptions(), TagOptions(top_k=2), TagOptions(labels=["a", "b"]), TagOptions(top_k=9)]
    images = [service.decode(jpeg, model) for jpeg in jpegs[:2]]
    queries = [replace(service.create_query(each), images=images) for each in options]
    answers = service.tag(queries)
    assert sorted(sizes) == [2, 6]
    assert [[len(each.tags) for each in answer] for answer in answers] == [[5, 5], [2, 2], [2, 2], [9, 9]]
    for query, answer in zip(queries, answers, strict=True):
        (alone,) = service.tag([query])
        for found, expected in zip(answer, alone, strict=True):
            assert [each.label for each in found.tags] == [each.label for each in expected.tags]
            assert [each.score for each in found.tags] == pytest.approx([e.score for e in expected.tags], abs=1e-5)


def test_what_answers(client: TestClient, checkpoint: Path) -> None:
    model = client.get("/v1/model").json()
    assert model["seen_labels"] + model["unseen_labels"] == len(toybox.vocabulary())
    assert model["limits"]["max_images"] == 8
    vocabulary = client.get("/v1/vocabulary").json()
    assert vocabulary["hash"] == toybox.vocabulary().hash
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    refused(client.get("/v1/model?model=other"), 404, "expected one of default")


def test_several_models(config: ServeConfig, jpegs: list[bytes], tmp_path: Path) -> None:
    other = untrained_checkpoint(tmp_path / "other", seed=1)
    client = client_of(replace(config, models={"other": str(other)}))
    body = client.get("/v1/model").json()
    assert body["other_models"] == ["other"]
    assert body["others"] == ["other"]  # the key of version 0.1.0
    bodies = [client.post("/v1/tag", files=files(jpegs), data=data).json() for data in ({}, {"model": "other"})]
    assert bodies[0]["checkpoint"] != bodies[1]["checkpoint"]
    assert bodies[1]["model"] == "other"
    expected = Tagger.load(str(other)).tag(jpegs)
    assert [[tag["label"] for tag in each["tags"]] for each in bodies[1]["results"]] == [e.labels for e in expected]
    damaged = untrained_checkpoint(tmp_path / "damaged", seed=2)
    config = replace(config, models={"other": str(other), "damaged": str(damaged)})
    service = Service(config)
    assert set(service.models) == {"default"}  # others when they are asked for
    held = service.model("other")
    assert service.model("other") is held
    service.unload("other")
    assert set(service.models) == {"default"}
    assert service.model("other").version == held.version
    (damaged / "weights.safetensors").write_bytes(b"")
    client = client_of(config)
    refused(client.post("/v1/tag", files=files(jpegs), data={"model": "damaged"}), 503, "damaged cannot be loaded now")
    refused(client.get("/v1/vocabulary?model=none"), 404, "expected one of damaged, default, other")
    with pytest.raises(ConfigError, match="'default' is the name of --checkpoint"):
        replace(config, models={"default": "x"})


def test_what_proxies_answer_themselves_is_something_that_passes() -> None:
    async def gone(scope, receive, send) -> None:
        """A proxy of Serve whose replica has died."""

    response = TestClient(ProxyProblems(gone)).post("/v1/tag")
    refused(response, 503, "retry")
    assert response.headers["Retry-After"] == "1"
    busy = TestClient(ProxyProblems(PlainTextResponse("Request dropped due to backpressure (...)", 503)))
    refused(busy.get("/"), 503, "overloaded: all replicas are busy")
    for status, media_type in ((404, "text/plain"), (503, MEDIA_TYPE), (500, "text/plain")):
        response = TestClient(ProxyProblems(Response("a body", status, media_type=media_type))).get("/")
        assert (response.status_code, response.text) == (status, "a body")
    module, _, name = middleware.PROXY_CALLBACK.partition(":")
    assert module == middleware.__name__
    for function in (getattr(middleware, name), middleware.in_proxies):  # the latter in manifests of version 0.1.0
        assert [each.cls for each in function()] == [ProxyProblems]


def test_a_new_checkpoint_in_the_same_place_takes_over(
    config: ServeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = untrained_checkpoint(tmp_path / "place")
    service = Service(replace(config, checkpoint=str(place)))
    before = service.model(None)
    assert service.refresh() == []
    assert service.model(None) is before
    weights = (place / "weights.safetensors").read_bytes()
    (place / "weights.safetensors").write_bytes(weights[:-8])  # half way through a copy, the manifest still the old one
    (place / "manifest.json").write_text((place / "manifest.json").read_text() + "\n")
    with caplog.at_level(logging.WARNING):
        assert service.refresh() == []
    assert "model default: the current version stays in use" in caplog.text
    assert service.model(None) is before
    untrained_checkpoint(place, seed=3)
    assert service.refresh() == ["default"]
    assert service.model(None).version != before.version


# ---- label lists with names ----


def test_named_label_lists(client: TestClient, config: ServeConfig, jpegs: list[bytes]) -> None:
    new = {"name": "shoes", "labels": ["boot", {"label": "sandal", "synonyms": ["flip-flop"]}]}
    made = client.post("/v1/vocabularies", json=new)
    assert made.status_code == 201, made.text
    assert client.post("/v1/vocabularies", json=new).status_code == 200
    refused(client.post("/v1/vocabularies", json={**new, "labels": ["hat"]}), 409, "taken by another list of 2 labels")
    assert client.get("/v1/vocabularies").json() == {"names": ["shoes"]}
    assert client.get("/v1/vocabularies/shoes").json() == made.json()
    body = client.post("/v1/tag", files=files(jpegs[:1]), data={"vocabulary": "shoes"}).json()
    assert {tag["label"] for tag in body["results"][0]["tags"]} == {"boot", "sandal"}
    assert body["vocabulary"] == made.json()["hash"]
    again = client_of(config)  # another replica, or the next start
    assert again.get("/v1/vocabularies/shoes").json() == made.json()
    kept = list((Path(config.vocabularies or "") / "embeddings").iterdir())
    assert len(kept) == 1
    refused(client.get("/v1/vocabularies/hats"), 404, "no label list of that name")
    refused(client.get("/v1/vocabularies/..%2f..%2fetc"), 404, "no such path")
    refused(client.post("/v1/vocabularies", json={"name": "../x", "labels": ["a"]}), 422, "name: ")
    refused(client.post("/v1/vocabularies", json={"name": "x", "labels": ["a", "a"]}), 422, "listed twice: a")
    refused(client.post("/v1/vocabularies", json={"name": "x", "labels": []}), 422, "labels: ")
    refused(client.post("/v1/vocabularies", content=b"{", headers={"content-type": "application/json"}), 400, "JSON")


def test_kept_embeddings_are_used_and_damaged_ones_are_not(config: ServeConfig) -> None:
    service = Service(config)
    vocabulary, new = service.store_vocabulary("pets", ["cat", "dog"])
    assert new
    expected = service.model(None).tagger.encode_labels(vocabulary).labels_CD
    (kept,) = (Path(config.vocabularies or "") / "embeddings").iterdir()
    later = Service(config)
    later.store_vocabulary("pets", ["cat", "dog"])
    assert later.model(None).tagger.encode_labels(vocabulary).labels_CD.equal(expected)
    kept.write_bytes(b"x")
    damaged = Service(config)
    damaged.store_vocabulary("pets", ["cat", "dog"])
    assert damaged.model(None).tagger.encode_labels(vocabulary).labels_CD.equal(expected)
    assert kept.stat().st_size > 1


def test_so_many_label_lists_and_no_more(tmp_path: Path) -> None:
    kept = VocabularyStore(str(tmp_path / "kept"), max_vocabularies=2)
    assert kept.put("a", Vocabulary.from_names(["x"]))
    assert kept.put("b", Vocabulary.from_names(["x"]))
    with pytest.raises(VocabularyError, match="its maximum of 2 lists"):
        kept.put("c", Vocabulary.from_names(["x"]))
    assert not kept.put("b", Vocabulary.from_names(["x"]))
    with pytest.raises(NameTakenError):
        kept.put("b", Vocabulary.from_names(["y"]))
    assert kept.names() == ["a", "b"]
    assert kept.get("no") is None


# ---- refusals ----


def test_what_is_asked_is_checked(client: TestClient, jpegs: list[bytes]) -> None:
    one = files(jpegs[:1])
    for data, detail in (
        ({"top_k": "0"}, "top_k: "),
        ({"top_k": "many"}, "top_k: "),
        ({"threshold": "2"}, "threshold"),
        ({"labels": ""}, "labels: "),
        ({"labels": "a\na"}, "listed twice: a"),
        ({"labels": "[1]"}, "labels.0"),
        ({"labels": "\n".join(map(str, range(51)))}, "found 51, expected at most 50"),
        ({"labels": "a", "vocabulary": "b"}, "found both"),
        ({"colour": "red"}, "colour: "),
    ):
        refused(client.post("/v1/tag", files=one, data=data), 422, detail)
    refused(client.post("/v1/tag", files=one, data={"labels": "[1"}), 422, "one label per line")
    refused(client.post("/v1/tag", files=one, data={"vocabulary": "none"}), 404, "no label list of that name")
    refused(client.post("/v1/tag", files=one, data={"model": "none"}), 404, "model: no model of that name")
    refused(client.post("/v1/tag", files=files(jpegs[:1] * 9)), 413, "found 9, expected at most 8")
    refused(client.post("/v1/tag", files=files(jpegs[:1] * 10)), 400, "form: ")
    refused(client.post("/v1/tag", files=[("picture", ("a.jpg", jpegs[0]))]), 422, "files named images")
    refused(client.post("/v1/tag", data={"top_k": "1"}), 415, "multipart/form-data or application/json")
    refused(client.post("/v1/tag", json={"images": []}), 422, "images: ")
    refused(client.post("/v1/tag", json={"images": ["???"]}), 422, "number 1: not valid base64")
    refused(client.post("/v1/tag", json=[1]), 422, "body: ")
    refused(client.post("/v1/tag", content=b"[" * 100_000, headers={"content-type": "application/json"}), 400, "JSON")
    refused(client.get("/v1/tag"), 405, "method not allowed")
    refused(client.get("/nothing"), 404, "openapi.json")


def test_large_bodies_are_refused_whether_they_say_so_or_not(client: TestClient) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 1000

    headers = {"content-type": "application/json"}
    refused(client.post("/v1/tag", content=b"x" * 300_001, headers=headers), 413, "at most 300000 bytes")
    refused(client.post("/v1/tag", content=pieces(), headers=headers), 413, "at most 300000 bytes")
    form = {"content-type": "multipart/form-data; boundary=x"}
    refused(client.post("/v1/tag", content=pieces(), headers=form), 413, "at most 300000 bytes")


def test_more_bytes_than_memory_is_for_are_turned_away(config: ServeConfig, jpegs: list[bytes]) -> None:
    body, headers = b"x" * 200_000, {"content-type": "application/json"}
    client = client_of(replace(config, max_inflight_bytes=300_000))
    limit = next(each for each in _stack(client.app) if isinstance(each, BodyLimit))
    limit.inflight_bytes = 150_000
    refused(
        client.post("/v1/tag", content=body, headers=headers),
        503,
        "overloaded: the requests in progress use all memory",
    )
    limit.inflight_bytes = 0
    refused(client.post("/v1/tag", content=body, headers=headers), 400, "not valid JSON")
    assert limit.inflight_bytes == 0
    assert client.post("/v1/tag", files=files(jpegs[:1])).status_code == 200
    assert limit.inflight_bytes == 0


def _stack(app) -> Iterator:
    """The application and what is wrapped in it; its middleware is made with the first request."""
    app.middleware_stack = app.middleware_stack or app.build_middleware_stack()
    layer = app.middleware_stack
    while layer is not None:
        yield layer
        layer = getattr(layer, "app", None)


def test_images_with_too_many_pixels(config: ServeConfig) -> None:
    stream = io.BytesIO()
    Image.new("L", (3000, 3000)).save(stream, "PNG")
    small = replace(config, max_pixels=1_000_000)
    response = client_of(small).post("/v1/tag", files=files([stream.getvalue()]))
    refused(response, 413, "images: no readable image: 1 too_many_pixels; the first one is ")
    refused(response, 413, "3000x3000; at most 1000000 pixels are decoded")
    assert response.json()["reasons"] == ["too_many_pixels"]


@pytest.mark.parametrize(
    ("images", "status", "detail"),
    [
        ([b"nonsense"], 415, "1 not_an_image"),
        ([b"%PDF-1.7\n"], 415, "1 unsupported; the first one is unsupported: pdf"),
        ([b""], 422, "1 empty"),
        ([b"nonsense", b"", b"more nonsense"], 415, "2 not_an_image, 1 empty"),
    ],
)
def test_where_no_image_can_be_read(client: TestClient, images: list[bytes], status: int, detail: str) -> None:
    refused(client.post("/v1/tag", files=files(images)), status, detail)


def test_more_than_may_wait_is_turned_away(config: ServeConfig, jpegs: list[bytes]) -> None:
    service, release = Service(config), asyncio.Event()

    async def run_query(query: TagQuery) -> list[TagResult]:
        await release.wait()
        return (await asyncio.to_thread(service.tag, [query]))[0]

    async def take_tokens(client: str, per_minute: float, requested: int) -> tuple[int, float]:
        return requested, 0.0

    async def send_requests() -> list:
        import httpx2

        transport = httpx2.ASGITransport(create_app(service, run_query, lambda: None, RateLimiter(take_tokens)))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as app:
            first = [asyncio.create_task(app.post("/v1/tag", files=files(jpegs[:1] * 8))) for _ in range(2)]
            while not all(task.get_coro() is None or task.done() for task in first):
                await asyncio.sleep(0.2)
                turned_away = await app.post("/v1/tag", files=files(jpegs[:1]))
                if turned_away.status_code == 503:
                    break
            ready = await app.get("/readyz")
            release.set()
            return [turned_away, ready, *await asyncio.gather(*first), await app.get("/readyz")]

    turned_away, ready, *answered, later = asyncio.run(send_requests())
    refused(turned_away, 503, "overloaded: 16 images are pending")
    assert turned_away.headers["retry-after"] == "1"
    refused(ready, 503, "overloaded: the maximum number of images is pending")
    assert [each.status_code for each in answered] == [200, 200]
    assert later.status_code == 200


# ---- keys and rates ----


def test_keys(config: ServeConfig, jpegs: list[bytes], tmp_path: Path) -> None:
    where = str(tmp_path / "keys.json")
    alice, bob = add_key(where, "alice"), add_key(where, "bob", requests_per_minute=6)
    assert alice not in Path(where).read_text()
    with pytest.raises(ConfigError, match="has a key named 'alice'"):
        add_key(where, "alice")
    client = client_of(config, ApiKeys.load(where))
    refused(client.get("/v1/model"), 401, "API key required")
    refused(client.get("/v1/model", headers={"authorization": "Bearer " + alice[:-1]}), 401, "unknown API key")
    refused(client.post("/v1/tag", files=files(jpegs[:1])), 401, "API key required")
    assert client.get("/v1/model").headers["www-authenticate"] == "Bearer"
    for headers in ({"authorization": f"Bearer {alice}"}, {"x-api-key": alice}):
        assert client.get("/v1/model", headers=headers).status_code == 200
    for path in ("/healthz", "/readyz", "/", "/page.js", "/openapi.json"):
        assert client.get(path).status_code == 200
    statuses = [client.get("/v1/model", headers={"x-api-key": bob}).status_code for _ in range(3)]
    assert statuses == [200, 429, 429]
    limited = client.get("/v1/model", headers={"x-api-key": bob})
    refused(limited, 429, "rate limit: 6 requests per minute")
    assert 1 <= int(limited.headers["retry-after"]) <= 10
    assert client.get("/v1/model", headers={"x-api-key": alice}).status_code == 200


@pytest.mark.parametrize("text", ["{", "[]", '[{"name": "a"}]', '[{"name": "a", "sha256": "zz"}]', '["a"]'])
def test_files_that_list_no_keys(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.json").write_text(text)
    with pytest.raises(Exception, match=r"keys\.json"):
        ApiKeys.load(str(tmp_path / "keys.json"))


def test_a_bucket_fills_as_time_goes() -> None:
    now = [0.0]
    bucket = TokenBucket(60, lambda: now[0])
    assert bucket.take(4) == (4, 0.0)
    assert bucket.take(100) == (6, 0.0)
    given, wait = bucket.take(1)
    assert (given, round(wait, 6)) == (0, 1.0)
    now[0] = 0.5
    assert bucket.take(1)[1] == pytest.approx(0.5)
    now[0] = 3600
    assert bucket.take(100) == (10, 0.0)


def test_replicas_together_keep_to_one_rate() -> None:
    now = [0.0]
    buckets = TokenBuckets(lambda: now[0])

    async def take_tokens(client: str, per_minute: float, requested: int) -> tuple[int, float]:
        return buckets.take(client, per_minute, requested)

    async def count() -> int:
        replicas, through = [RateLimiter(take_tokens) for _ in range(3)], 0
        for step in range(6000):  # a minute, a hundred requests a second
            now[0] = step / 100
            through += await replicas[step % 3].acquire("alice", 600) == 0
        return through

    assert 600 <= asyncio.run(count()) <= 600 + 100 + 30  # its rate, its burst, and what replicas have prefetched


# ---- what is not to be seen ----


def test_nothing_a_client_sent_is_logged(
    config: ServeConfig, jpegs: list[bytes], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, error = client_of(config), RuntimeError("about secret-words")

    def broken(*_, **__):
        raise error

    with caplog.at_level(logging.DEBUG):
        client.post("/v1/tag", files=files(jpegs[:1]), data={"labels": "secret-words\nsecret-words"})
        client.get("/v1/vocabularies/secret-words")
        monkeypatch.setattr(Service, "create_query", broken)
        failed = client.post("/v1/tag", files=files(jpegs[:1]), data={"labels": "secret-words"})
    refused(failed, 500, "the server's log has details under the number")
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("sigrl"))
    assert failed.json()["detail"].split()[-1] in ours
    assert "in broken" in ours
    assert "secret-words" not in ours


def test_the_page_may_run_nothing_but_its_own(client: TestClient) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for word in ("<script>", "style=", "onclick", "http://", "https://"):
        assert word not in page.text
    assert client.get("/page.js").headers["content-type"].startswith("text/javascript")


def test_the_page_takes_nothing_from_its_address(client: TestClient) -> None:
    """A parameter that changed its content would let a link run scripts in the page, with the key of its user."""
    for name in ("content", "media_type", "headers"):
        assert client.get("/", params={name: "text/javascript"}).content == client.get("/").content
        assert client.get("/", params={name: "text/javascript"}).headers["content-type"] == "text/html; charset=utf-8"


def test_model_response_of_an_old_server_is_read(client: TestClient) -> None:
    body = client.get("/v1/model").json()
    schema = client.get("/openapi.json").json()["components"]["schemas"]["ModelResponse"]["properties"]
    assert schema["others"]["deprecated"]
    assert "deprecated" not in schema["other_models"]
    for key in ("other_models", "others"):
        old = {name: value for name, value in body.items() if name not in ("other_models", "others")} | {key: ["cats"]}
        assert ModelResponse.model_validate(old).other_models == ["cats"]


def test_an_endpoint_of_ones_own(config: ServeConfig, jpegs: list[bytes], tmp_path: Path) -> None:
    def create_router(handler: RequestHandler) -> APIRouter:
        router = APIRouter()

        @router.post("/v1/brightness")
        async def brightness(images: list[UploadFile], model: str | None = None) -> list[float | None]:
            files = [await image.read() for image in images]
            decoded = await handler.decode(files, await handler.model(model))
            return [None if isinstance(image, ImageError) else float(image.mean()) for image in decoded]

        @router.get("/v1/model")
        async def replaced() -> str:
            return "replaced"

        return router

    register_endpoint("brightness")(create_router)
    try:
        key = add_key(str(tmp_path / "keys.json"), "alice")
        client = client_of(config, ApiKeys.load(str(tmp_path / "keys.json")))
        refused(client.post("/v1/brightness", files=files(jpegs[:1])), 401, "API key required")
        client.headers["x-api-key"] = key
        body = client.post("/v1/brightness", files=[*files(jpegs[:2]), *files([b"nonsense"])]).json()
        assert [each is not None for each in body] == [True, True, False]
        refused(client.post("/v1/brightness?model=none", files=files(jpegs[:1])), 404, "no model of that name")
        assert client.get("/v1/model").json()["name"] == "default"
        assert "401" in client.get("/openapi.json").json()["paths"]["/v1/brightness"]["post"]["responses"]
    finally:
        del ENDPOINTS["brightness"]


def test_requests_are_reported_by_route(config: ServeConfig) -> None:
    """Never by path, which may contain a client's names."""
    reported: list[tuple[str, int]] = []

    async def unused(*_: object) -> Any:
        raise AssertionError

    async def take_tokens(client: str, per_minute: float, requested: int) -> tuple[int, float]:
        return requested, 0.0

    def on_request(route: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        reported.append((route, status))

    app = create_app(Service(config), unused, lambda: None, RateLimiter(take_tokens), on_request)
    client = TestClient(app, raise_server_exceptions=False)
    for path in ("/", "/healthz", "/v1/vocabularies/secret", "/v1/vocabularies", "/secret"):
        client.get(path)
    assert reported == [
        ("/", 200), ("/healthz", 200), ("/v1/vocabularies/{name}", 404), ("/v1/vocabularies", 200), ("other", 404),
    ]  # fmt: skip


def test_the_document_is_one(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/tag", "/v1/vocabulary", "/v1/vocabularies", "/v1/vocabularies/{name}", "/v1/model", "/healthz", "/readyz",
    }  # fmt: skip
    text = json.dumps(document)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in document["components"]["schemas"], name
