"""Tables of losses, graphs, corpora, backbones, metrics and endpoints that users can extend. Standard library only.

A table maps a name to a function. Built-in functions are named by "module:attribute" strings and imported at first use,
so that names can be listed and checked without importing torch. Users add entries in three ways:

1. `@register_loss("squared")` in a notebook or script, and the same for the other tables;
2. a module that contains such decorators, loaded with `--plugin MODULE` or `load(["MODULE"])`;
3. an installed package with an entry point in the group `sigrl.plugins` whose value is such a module.

`sigrl_core.on_ray.worker_plugins` sends entries of 1 and 2 to the Ray workers of the same job; every process that has
the package finds entries of 3.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeVar

from sigrl_core.errors import ConfigError, CorpusError, SigrlError

ENTRY_POINT_GROUP = "sigrl.plugins"

Origin = Literal["local", "entry point", "received"]
"""Where an entry was registered: in this process, by an installed package, or by the driver of this Ray job."""

Function = TypeVar("Function", bound=Callable[..., Any])


class _Entry(NamedTuple):
    value: Any
    origin: Origin


class Registry(MutableMapping[str, Any]):
    """One table: built-in entries, and those that plug-ins register.

    Args:
        noun: what an entry is called in messages and in `register_...`.
        key: the configuration field that holds a name of this table.
        built_in: name -> "module:attribute".
        error: raised for an unknown name.
    """

    def __init__(self, noun: str, key: str, built_in: Mapping[str, str], error: type[SigrlError] = ConfigError) -> None:
        self.noun, self.key, self.error = noun, key, error
        self._built_in = dict(built_in)
        self._imported: dict[str, Any] = {}
        self._entries: dict[str, _Entry] = {}
        _REGISTRIES[noun] = self

    def register(self, name: str) -> Callable[[Function], Function]:
        """Returns a decorator that adds a function under a name.

        Raises:
            ConfigError: the name is taken by another module, or the arguments are not a name and a function.
        """
        if not isinstance(name, str) or not name or name != name.strip():
            raise ConfigError(
                f"register_{self.noun}: found {name!r}; expected a name, @register_{self.noun}('my_name')"
            )

        def decorate(function: Function) -> Function:
            self[name] = function
            return function

        return decorate

    def __setitem__(self, name: str, value: Any) -> None:
        if not callable(value):
            raise ConfigError(f"register_{self.noun}: {name!r} is {value!r}; expected a function")
        current = self._entries.get(name)
        if name in self._built_in or (current is not None and _module(current.value) != _module(value)):
            owner = "built in" if current is None else f"registered by {_module(current.value)}"
            raise ConfigError(f"register_{self.noun}: the name {name!r} is {owner}; choose another name")
        self._entries[name] = _Entry(value, _origin)

    def __getitem__(self, name: str) -> Any:
        if name in self._built_in:
            if name not in self._imported:
                module, _, attribute = self._built_in[name].partition(":")
                self._imported[name] = getattr(importlib.import_module(module), attribute)
            return self._imported[name]
        entry = self._entry(name)
        if entry is None:
            raise self.unknown(name)
        return entry.value

    def unknown(self, name: str, *other_names: str) -> SigrlError:
        """Returns the error for a name that is not in this table; lists the names that are, and `other_names`."""
        names = ", ".join([*self, *other_names])
        return self.error(
            f"{self.key} is {name!r}; expected one of {names}, or a name that a plug-in registers (--plugin MODULE)"
        )

    def _entry(self, name: str) -> _Entry | None:
        entry = self._entries.get(name)
        if entry is None or entry.origin == "received":  # the driver may have replaced it since
            _discover()
        return self._entries.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or (isinstance(name, str) and self._entry(name) is not None)

    def __delitem__(self, name: str) -> None:
        """Removes a registered entry; built-in entries stay."""
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        _discover()
        return iter([*self._built_in, *self._entries])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def registered(self) -> list[str]:
        """Names that plug-ins added."""
        _discover()
        return list(self._entries)


_REGISTRIES: dict[str, Registry] = {}
_origin: Origin = "local"

LOSSES = Registry(
    "loss",
    "loss.kind",
    {
        name: f"sigrl_core.training.losses:{function}"
        for name, function in {
            "ranking": "ranking",
            "pairwise": "pairwise",
            "bce": "bce",
            "focal": "focal",
            "asymmetric": "asymmetric",
            "an": "assume_negative",
            "an_ls": "assume_negative_smoothed",
            "wan": "weak_assume_negative",
            "epr": "expected_positives",
            "role": "role",
            "em": "entropy_maximisation",
            "em_apl": "entropy_with_soft_labels",
            "em_pl": "entropy_with_pseudo_labels",
            "ll_r": "large_loss_rejection",
        }.items()
    },
)
GRAPHS = Registry(
    "graph",
    "graph.kind",
    {
        "complete": "sigrl_core.model.label_graph:complete_edges",
        "nearest": "sigrl_core.model.label_graph:nearest_edges",
        "cooccurrence": "sigrl_core.model.label_graph:known_edges",
        "listed": "sigrl_core.model.label_graph:known_edges",
    },
)
CORPORA = Registry(
    "corpus",
    "corpus",
    {
        "folder": "sigrl_core.corpora.folder:list_corpus",
        "files": "sigrl_core.corpora.files:list_corpus",
        "shards": "sigrl_core.corpora.shards:list_corpus",
        "jsonl": "sigrl_core.corpora.jsonl:list_corpus",
        "csv": "sigrl_core.corpora.csv_list:list_corpus",
        "parquet": "sigrl_core.corpora.parquet_list:list_corpus",
        "webdataset": "sigrl_core.corpora.webdataset:list_corpus",
        "hugging_face": "sigrl_core.corpora.hugging_face:list_corpus",
        "coco": "sigrl_core.corpora.coco:list_corpus",
        "voc": "sigrl_core.corpora.voc:list_corpus",
        "yolo": "sigrl_core.corpora.yolo:list_corpus",
        "voc_xml": "sigrl_core.corpora.voc_xml:list_corpus",
        "image_folder": "sigrl_core.corpora.image_folder:list_corpus",
        "arrow": "sigrl_core.corpora.arrow:list_corpus",
        "cvat": "sigrl_core.corpora.cvat:list_corpus",
        "label_studio": "sigrl_core.corpora.label_studio:list_corpus",
        "create_ml": "sigrl_core.corpora.create_ml:list_corpus",
        "fiftyone": "sigrl_core.corpora.fiftyone:list_corpus",
        "azure": "sigrl_core.corpora.cloud_lists:list_azure",
        "vertex": "sigrl_core.corpora.cloud_lists:list_vertex",
        "sagemaker": "sigrl_core.corpora.cloud_lists:list_sagemaker",
        "roboflow": "sigrl_core.corpora.class_tables:list_roboflow",
        "chexpert": "sigrl_core.corpora.class_tables:list_chexpert",
        "celeba": "sigrl_core.corpora.class_tables:list_celeba",
        "label_matrix": "sigrl_core.corpora.label_matrix:list_corpus",
        "open_images": "sigrl_core.corpora.open_images:list_corpus",
        "nus_wide": "sigrl_core.corpora.nus_wide:list_tags_and_concepts",
        "nus_wide_81": "sigrl_core.corpora.nus_wide:list_concepts",
        "cub": "sigrl_core.corpora.cub:list_corpus",
        "cub_train": "sigrl_core.corpora.cub:list_train_corpus",
        "cub_test": "sigrl_core.corpora.cub:list_test_corpus",
    },
    CorpusError,
)
BACKBONES = Registry("backbone", "backbone.name", {"toybox-vit": "sigrl_core.demo.vit:toybox_vit"})
METRICS = Registry("metric", "metric", {"map": "sigrl_core.metrics:mean_average_precision"})
ENDPOINTS = Registry("endpoint", "endpoint", {"tags": "sigrl_core.serving.routes:create_tag_router"})


def register_loss(name: str) -> Callable[[Function], Function]:
    """Adds a loss to `--loss.kind`: a function (logits [B,C], Targets, LossConfig, BatchReducer) -> scalar tensor."""
    return LOSSES.register(name)


def register_graph(name: str) -> Callable[[Function], Function]:
    """Adds a label graph to `--graph.kind`: (labels [C,D], known edges [C,C] or None, GraphConfig) -> edges [C,C]."""
    return GRAPHS.register(name)


def register_corpus(name: str) -> Callable[[Function], Function]:
    """Adds a corpus format to `--corpus`: a function (folder of images, annotation file or None) -> Listing."""
    return CORPORA.register(name)


def register_backbone(name: str) -> Callable[[Function], Function]:
    """Adds a backbone to `--backbone.name`: a function () -> open_clip model whose visual tower is a ViT."""
    return BACKBONES.register(name)


def register_metric(name: str) -> Callable[[Function], Function]:
    """Adds a metric to validation and evaluation: (scores [N,C], label states [N,C]) -> number, in numpy."""
    return METRICS.register(name)


def register_endpoint(name: str) -> Callable[[Function], Function]:
    """Adds routes to the server: a function (serving.handlers.RequestHandler) -> fastapi.APIRouter.

    Its routes require an API key and count against the client's rate limit, like the built-in ones.
    """
    return ENDPOINTS.register(name)


def load(modules: Sequence[str]) -> None:
    """Imports plug-in modules; a module in the current folder is found as well.

    Raises:
        ConfigError: a module cannot be imported; names it and the reason.
    """
    if modules and not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # as `python -m` does; a console command does not
    for module in modules:
        try:
            importlib.import_module(module)
        except SigrlError:
            raise
        except Exception as error:
            raise ConfigError(
                f"plug-in module {module!r} cannot be imported ({type(error).__name__}: {error}); "
                "install it, or run the command in the folder that contains it"
            ) from error


def local_entries() -> dict[str, dict[str, Any]]:
    """Entries that this process registered itself: table -> name -> function."""
    tables = {
        noun: {name: entry.value for name, entry in registry._entries.items() if entry.origin == "local"}
        for noun, registry in _REGISTRIES.items()
    }
    return {noun: entries for noun, entries in tables.items() if entries}


@contextmanager
def registering(origin: Origin) -> Iterator[None]:
    """Entries registered in the body, also by modules imported there, have this origin."""
    global _origin
    before, _origin = _origin, origin
    try:
        yield
    finally:
        _origin = before


def receive(entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds entries that another process registered; they replace those received before."""
    for noun, registry in _REGISTRIES.items():
        for name, value in entries.get(noun, {}).items():
            registry._entries[name] = _Entry(value, "received")


remote_source: Callable[[], None] | None = None
"""Fetches what the driver of this Ray job registered; `sigrl_core.on_ray` sets it."""
_entry_points_loaded = False


def _discover() -> None:
    """Loads entry points, once, and what the driver registered."""
    global _entry_points_loaded
    if not _entry_points_loaded:
        _entry_points_loaded = True
        import importlib.metadata  # not at the top: it takes a tenth of the time of `--help`

        with registering("entry point"):
            for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
                try:
                    point.load()
                except Exception as error:
                    owner = point.dist.name if point.dist is not None else "an installed package"
                    raise ConfigError(
                        f"plug-in {point.value!r} of {owner} cannot be imported ({type(error).__name__}: {error}); "
                        "repair or uninstall that package"
                    ) from error
    if remote_source is not None:
        remote_source()


def _module(function: Any) -> str:
    return getattr(function, "__module__", None) or type(function).__module__
