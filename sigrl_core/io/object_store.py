"""Clients of object stores, and explanations of their errors.

Endpoint, region and credentials of S3 come from the environment, as for other AWS tools: `AWS_ENDPOINT_URL_S3` or
`AWS_ENDPOINT_URL` (addressed by path, `endpoint/bucket/key`), `AWS_REGION` or `AWS_DEFAULT_REGION`,
`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`. Without keys, the clients use a profile or the
machine's role.

boto3 reads whole S3 objects and listings: it takes one request per object instead of Arrow's two, and its errors are
more specific. Arrow reads parts of objects, writes, and accesses other stores.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from pyarrow import fs

CONNECT_SECONDS, REQUEST_SECONDS = 5, 20
"""Time after which a connection, or a request without a response, has failed."""

# in the messages of Arrow's errors that another attempt does not avoid
_PERMANENT = re.compile("ACCESS_DENIED|NO_SUCH|NOT_FOUND|INVALID|SIGNATURE")


class S3Settings(NamedTuple):
    """Endpoint, region and credentials of S3."""

    endpoint: str | None
    region: str
    key: str | None
    secret: str | None
    token: str | None

    @classmethod
    def from_environment(cls) -> S3Settings:
        get = os.environ.get
        return cls(
            get("AWS_ENDPOINT_URL_S3") or get("AWS_ENDPOINT_URL") or None,
            get("AWS_REGION") or get("AWS_DEFAULT_REGION") or "us-east-1",
            get("AWS_ACCESS_KEY_ID"),
            get("AWS_SECRET_ACCESS_KEY"),
            get("AWS_SESSION_TOKEN"),
        )


@functools.cache
def s3_filesystem(settings: S3Settings) -> fs.S3FileSystem:
    scheme, _, host = (settings.endpoint or "").rpartition("://")
    return fs.S3FileSystem(
        access_key=settings.key,
        secret_key=settings.secret,
        session_token=settings.token,
        region=settings.region,
        endpoint_override=host.rstrip("/") or None,
        scheme=scheme or "https",
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
        allow_delayed_open=True,  # writes a small object with one request
    )


@functools.cache
def s3_client(settings: S3Settings) -> Any:
    import boto3  # takes 0.3 s, and local work does not need it
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=settings.endpoint,
        region_name=settings.region,
        aws_access_key_id=settings.key,
        aws_secret_access_key=settings.secret,
        aws_session_token=settings.token,
        config=Config(
            s3={"addressing_style": "path"} if settings.endpoint else {},
            connect_timeout=CONNECT_SECONDS,
            read_timeout=REQUEST_SECONDS,
            retries={"mode": "standard", "max_attempts": 3},
            max_pool_connections=32,
        ),
    )


def read_s3(path: str, max_bytes: int | None = None, num_bytes: int | None = None) -> bytes:
    """Reads the object at `bucket/key`, or its first `num_bytes` if it is not empty.

    Raises OSError, or OversizeError if it has more than `max_bytes`.
    """
    bucket, _, key = path.partition("/")
    part = {} if num_bytes is None else {"Range": f"bytes=0-{num_bytes - 1}"}
    with _as_os_errors():
        response = s3_client(S3Settings.from_environment()).get_object(Bucket=bucket, Key=key, **part)
        with response["Body"] as body:
            if max_bytes is not None and response["ContentLength"] > max_bytes:
                raise OversizeError(response["ContentLength"])
            return body.read()


def list_s3_page(path: str, token: str | None = None) -> tuple[list[dict[str, Any]], str | None]:
    """Lists one page of the keys below `bucket/prefix`, in order, with the token of the next page; raises OSError."""
    bucket, _, prefix = path.partition("/")
    after = {} if token is None else {"ContinuationToken": token}
    with _as_os_errors():
        page = s3_client(S3Settings.from_environment()).list_objects_v2(Bucket=bucket, Prefix=prefix, **after)
    return page.get("Contents", []), page.get("NextContinuationToken")


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, IncompleteReadError

    try:
        yield
    except ClientError as error:
        code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        if code in ("NoSuchKey", "404"):
            raise FileNotFoundError(str(error)) from error
        raise StoreError(code, status, str(error)) from error
    except BotoCoreError as error:  # the connection failed, or the request is invalid
        lost = isinstance(error, ConnectionError | HTTPClientError | IncompleteReadError)
        raise StoreError(type(error).__name__, 599 if lost else 400, str(error)) from error


class OversizeError(Exception):
    """An object is too large to be read."""

    def __init__(self, size: int) -> None:
        super().__init__(f"{size} bytes")
        self.size = size


class StoreError(OSError):
    """An object store's error: code, HTTP status (599: no response; 400: no request was sent), and message."""

    def __init__(self, code: str, status: int, text: str) -> None:
        super().__init__(text)
        self.code, self.status = code, status

    def __reduce__(self):  # pickled between processes
        return type(self), (self.code, self.status, str(self))


def is_transient(error: BaseException | None) -> bool:
    """Returns whether the store or the network failed, so that the same call may succeed later."""
    if isinstance(error, StoreError):
        return error.status >= 500 or error.status in (408, 429)
    if not isinstance(error, OSError) or isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return False
    return "AWS Error" in str(error) and not _PERMANENT.search(str(error))


def explain(error: OSError) -> str | None:
    """Returns what is wrong and what to do, or None if the error is not specific to object stores."""
    text = str(error) if not isinstance(error, StoreError) else f"{error.code}: {error}"
    if "NO_SUCH_BUCKET" in text or "NoSuchBucket" in text:
        return "no such bucket; create it first, or check the name"
    if "SignatureDoesNotMatch" in text or "InvalidAccessKeyId" in text:
        return "the store rejects these credentials; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if "NoCredentials" in text:
        return "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role"
    if "ACCESS_DENIED" in text or (isinstance(error, StoreError) and error.status == 403):
        return "permission denied; check the credentials and their rights in this bucket"
    if is_transient(error):
        return (
            f"the store does not answer ({text[:200]}); check AWS_ENDPOINT_URL and the network, then run the same "
            "command again"
        )
    return None
