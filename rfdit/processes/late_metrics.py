"""torchmetrics without the metrics that nobody has asked for.

Lightning needs two classes of torchmetrics, and `import torchmetrics` brings all of its metrics: with them come
torchvision, transformers, scipy's signals and torch-fidelity, a third of the time in which a training process starts.
"""

import importlib.machinery
import importlib.metadata
import logging
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any

PACKAGE = "torchmetrics"
# What can be had without the rest, and its module; `torchmetrics.utilities` comes before each, since they import it.
ALONE = {"Metric": "torchmetrics.metric", "MetricCollection": "torchmetrics.collections"}


class _Late(ModuleType):
    """The package, which imports all of its metrics at the first access to anything but a few names."""

    def __getattr__(self, name: str) -> Any:
        if name in ALONE:
            import_module("torchmetrics.utilities")
            return getattr(import_module(ALONE[name]), name)
        if name == "__version__":  # Lightning compares it
            return importlib.metadata.version(PACKAGE)
        if name == "_logger":  # which its utilities import
            return logging.getLogger(PACKAGE)
        if name.startswith("__"):
            raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}")
        loader = self.__loader__
        assert isinstance(loader, _LateLoader)
        loader.load_all(self)
        return getattr(self, name)


class _LateLoader(Loader):
    def __init__(self, whole: Loader) -> None:
        self.whole = whole
        self._lock = threading.RLock()

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Late(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing yet."""

    def load_all(self, module: ModuleType) -> None:
        """Run the package's own `__init__`, once."""
        with self._lock:
            if isinstance(module, _Late):
                module.__class__ = ModuleType
                self.whole.exec_module(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != PACKAGE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _LateLoader(spec.loader)
        return spec


def import_metrics_late() -> None:
    """Let a later `import torchmetrics` import no more of it than is used; the first call counts."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
