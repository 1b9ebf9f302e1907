"""Names of other packages that are not documented as stable, and that this code rests on: each still exists.

An upgrade that removes one fails here, by its name, before anything fails in a user's run. pyproject.toml bounds the
versions of these packages. The scans below find uses that these tables lack.
"""

import ast
import re
from importlib import import_module, resources
from pathlib import Path

import pytest

from sigrl_core.on_ray.haproxy import ERROR_FILE, LOOPBACK, line_replacements, replace_lines
from sigrl_core.serving.client import MODEL_HEADER
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit

SERVE, TRAIN, RAYLET = "serve/_private/constants.py", "train/v2/_internal/constants.py", "core/src/ray/raylet/raylet"

RAY_ENVIRONMENT = {
    "RAY_ADDRESS": "_private/ray_constants.py",
    "RAY_AIR_NEW_OUTPUT": "tune/experimental/output.py",
    "RAY_AUTH_MODE": RAYLET,
    "RAY_AUTH_TOKEN": RAYLET,
    "RAY_AUTH_TOKEN_PATH": RAYLET,
    "RAY_GCS_SERVER_PORT": "_private/ray_constants.py",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": SERVE,
    "RAY_SERVE_ENABLE_HA_PROXY": SERVE,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": SERVE,
    "RAY_SERVE_HAPROXY_BINARY_PATH": SERVE,
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": SERVE,
    "RAY_SERVE_HAPROXY_LOG_TARGET": SERVE,
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": SERVE,
    "RAY_SERVE_HAPROXY_METRICS_PORT": SERVE,
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": SERVE,
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": SERVE,
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": SERVE,
    "RAY_SERVE_HAPROXY_SOCKET_PATH": SERVE,
    "RAY_SERVE_HAPROXY_STATS_PORT": SERVE,
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": SERVE,
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": TRAIN,
    "RAY_TRAIN_METRICS_ENABLED": TRAIN,
    "RAY_USAGE_STATS_ENABLED": "_common/usage/usage_constants.py",
    "RAY_enable_metrics_collection": RAYLET,
    "RAY_worker_niceness": RAYLET,
}
"""Environment variable -> file of the package `ray` that reads it; Ray's C++ code adds the prefix RAY_ itself."""

ATTRIBUTES = {
    "open_clip.transformer:VisionTransformer._embeds": "model.backbone: embeddings below the first block",
    "ray.data:DataContext.max_consecutive_actor_init_deaths": "on_ray.partitions",
    "ray.data:DataContext.memory_usage_poll_interval_s": "on_ray.partitions",
    "ray.experimental.internal_kv:_internal_kv_get": "on_ray.worker_plugins",
    "ray.experimental.internal_kv:_internal_kv_put": "on_ray.worker_plugins",
    "ray.serve._private.replica:SERVE_BUILD_ASGI_APP_METHOD": "on_ray.serve: the method that builds the application",
    "ray.serve.batching:_BatchQueue.set_max_batch_size": "on_ray.serve",
    "ray.train.v2._internal.execution.controller:TrainController.abort": "on_ray.train: Ctrl-C",
    "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer._create_default_callbacks": "on_ray.train",
    "ray.train.v2._internal.callbacks.datasets:DatasetsCallback": "on_ray.train: one process less for each training",
    "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer._register_sigint_handler": "on_ray.train: Ctrl-C",
    "ray.tune.integration.ray_train:CHECKPOINT_PATH_KEY": "on_ray.tune",
    "ray.tune.integration.ray_train:TuneReportCallback": "on_ray.tune_trial",
    "timm.data.auto_augment:rand_augment_transform": "data.transforms",
    "torchvision.ops.roi_align:is_compile_supported": "model.lean_import: the one function of torch._dynamo",
    "tyro:_resolver.is_instance": "cli.common: `--help` without typeguard",
    "torch:ops.aten._int_mm.out": "model.coefficients.quantised",
}
"""module:attribute -> where it is used."""

PRIVATE_ATTRIBUTES = {
    *("_create_default_callbacks", "_embeds", "_int_mm", "_metrics_export_port", "_register_sigint_handler"),
    "_resolver",
}
"""Private attributes and keywords of other packages in the code."""
PYTHON = {"_asdict", "_exit", "_fields", "_replace"}
"""Documented names of Python that start with an underscore."""


def source_files() -> list[Path]:
    return sorted((REPOSITORY / "sigrl_core").rglob("*.py"))


def ray_file(name: str) -> bytes:
    return resources.files("ray").joinpath(name).read_bytes()


def test_environment_variables_of_ray() -> None:
    used = {name for path in source_files() for name in re.findall(r"\bRAY_\w*[A-Za-z]\b", path.read_text())}
    assert used == set(RAY_ENVIRONMENT)
    files = {file: ray_file(file) for file in set(RAY_ENVIRONMENT.values())}
    missing = [
        name
        for name, file in RAY_ENVIRONMENT.items()
        if re.search(rb"\b%s\b" % name.encode(), files[file]) is None
        and not (file == RAYLET and re.search(rb"\b%s\b" % name.removeprefix("RAY_").encode(), files[file]))
    ]
    assert missing == []


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes(name: str) -> None:
    module, _, path = name.partition(":")
    value = import_module(module)
    for part in path.split("."):
        value = getattr(value, part)


def test_no_other_private_names() -> None:
    """Private attributes that the code reads are its own, or in the tables."""
    own, used, inherited, modules = set(), set(), set(), set()
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    own.add(node.name)
                case ast.Attribute(ctx=ast.Store()):
                    own.add(node.attr)
                case ast.Attribute(value=ast.Call(func=ast.Name(id="super"))):
                    inherited.add(node.attr)
                case ast.Attribute():
                    used.add(node.attr)
                case ast.Name(ctx=ast.Store()):
                    own.add(node.id)
                case ast.keyword(arg=str()):
                    used.add(node.arg)
                case ast.ImportFrom(module=str(module)) if not module.startswith("sigrl_core"):
                    modules |= {f"{module}:{alias.name}" for alias in node.names}
    private = {name for name in used | inherited if name.startswith("_") and not name.endswith("__")}
    overridden = {name.rpartition(".")[2] for name in ATTRIBUTES} & own
    assert (private - (own - inherited) - PYTHON) | (overridden & PRIVATE_ATTRIBUTES) == PRIVATE_ATTRIBUTES
    assert {name for name in modules if re.search(r"[.:]_(?!_)", name)} <= set(ATTRIBUTES)


def test_serve_closes_models_and_names_their_header() -> None:
    from ray.serve._private.constants import SERVE_MULTIPLEXED_MODEL_ID
    from ray.serve._private.replica import SERVE_BUILD_ASGI_APP_METHOD

    from sigrl_core.on_ray.serve import Server

    assert SERVE_MULTIPLEXED_MODEL_ID == MODEL_HEADER
    assert callable(getattr(Server.func_or_class, SERVE_BUILD_ASGI_APP_METHOD))
    assert b"model.__del__" in ray_file("serve/multiplex.py")  # of the least recently used model


def test_ray_clip_and_fastapi_have_upper_bounds() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    for package in ("ray", "open_clip_torch", "timm", "torch", "pillow", "fastapi"):
        (requirement,) = re.findall(rf'^    "{package}(?:\[.*\])?(>=.*?)"', text, re.MULTILINE)
        assert "<" in requirement, package


def haproxy_configuration(folder: Path, port: int, stats_port: int, metrics_port: int) -> str:
    """Serve's own configuration of HAProxy, without replicas."""
    from ray.serve._private import haproxy
    from ray.serve.config import HTTPOptions

    config = haproxy.HAProxyConfig(
        socket_path=str(folder / "admin"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        stats_port=stats_port,
        metrics_port=metrics_port,
        http_options=HTTPOptions(host=LOOPBACK, port=port),
    )
    api = haproxy.HAProxyApi(cfg=config, config_file_path=str(folder / "haproxy.cfg"))
    api._generate_config_file_internal()
    return (folder / "haproxy.cfg").read_text()


def test_lines_of_serves_haproxy_configuration(tmp_path: Path) -> None:
    text = haproxy_configuration(tmp_path, 8000, 8001, 8002)
    assert str(tmp_path / ERROR_FILE) in text
    replaced = replace_lines(text, line_replacements("::", 8000, 8001, 8002))
    binds = [line.strip() for line in replaced.splitlines() if line.strip().startswith("bind ")]
    assert sorted(binds) == [f"bind {LOOPBACK}:8001", f"bind {LOOPBACK}:8002", "bind [::]:8000 v4v6"]
    assert replaced.count("default-server pool-max-conn 0") == 1
    assert len(replaced.splitlines()) == len(text.splitlines()) + 1
    with pytest.raises(ValueError, match=r"expected one line 'bind 127\.0\.0\.1:8000'; this version of Ray"):
        replace_lines(replaced, line_replacements("::", 8000, 8001, 8002))


def test_unknown_operators_of_torch_are_missing() -> None:
    """So that `test_attributes` would fail for one."""
    import torch

    assert not hasattr(torch.ops.aten, "_no_such_operator")
