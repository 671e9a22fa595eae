"""Lazy imports of packages of which most runs need a small part.

Lightning needs two classes of torchmetrics, and the default text encoder the tokenizer of open_clip. Importing the
packages brings all of their metrics and models, and with them torchvision, transformers, timm, scipy's signals and
torch-fidelity: half of the time in which a training process starts.
"""

import importlib.machinery
import importlib.metadata
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any


def _of_torchmetrics(module: str, name: str) -> Any:
    import_module("torchmetrics.utilities")  # which imports them, and cannot be imported by them
    return getattr(import_module(f"torchmetrics.{module}"), name)


# The packages, and which of their names can be had without the rest: Lightning compares the version, and the logger
# is that of torchmetrics' own utilities. Their modules can be imported in any case.
PACKAGES: Mapping[str, Mapping[str, Callable[[], Any]]] = {
    "open_clip": {},
    "torchmetrics": {
        "Metric": lambda: _of_torchmetrics("metric", "Metric"),
        "MetricCollection": lambda: _of_torchmetrics("collections", "MetricCollection"),
        "__version__": lambda: importlib.metadata.version("torchmetrics"),
        "_logger": lambda: logging.getLogger("torchmetrics"),
    },
}


class _LazyPackage(ModuleType):
    """A package whose `__init__` runs at the first access to a name that it alone has."""

    def __getattr__(self, name: str) -> Any:
        if name in PACKAGES[self.__name__]:
            return PACKAGES[self.__name__][name]()
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        loader = self.__loader__
        assert isinstance(loader, _LazyLoader)
        if not loader.load(self):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} yet")
        return getattr(self, name)


class _LazyLoader(Loader):
    def __init__(self, own: Loader) -> None:
        self.own = own
        self._lock, self._loading = threading.RLock(), False

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _LazyPackage(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing yet."""

    def load(self, module: ModuleType) -> bool:
        """Run the package's own `__init__`, once; False if this is asked for in the middle of it.

        Another thread waits until it has run. After an error, which is raised, the next access tries again.
        """
        with self._lock:
            if self._loading:
                return False
            if isinstance(module, _LazyPackage):
                self._loading = True
                try:
                    self.own.exec_module(module)
                finally:
                    self._loading = False
                module.__class__ = ModuleType  # type: ignore[assignment]
            return True


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in PACKAGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _LazyLoader(spec.loader)
        return spec


def import_lazily() -> None:
    """Let later imports of `PACKAGES` bring no more of them than is used. Only the first call counts."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
