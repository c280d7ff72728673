"""Importing timm and torchvision without torch._dynamo: a second that only torch.compile needs."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_MODULES = ("torch._dynamo", "torch._dynamo.utils")


class _Deferred(ModuleType):
    """In the place of a module; gives way to it when more is asked of it than it has."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _give_way()
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def without_dynamo() -> Iterator[None]:
    """While a library is imported, what it asks of torch._dynamo waits until it is called.

    torchvision asks whether a device can compile, when regions are cropped; timm marks functions
    of models that no detector uses as not to be compiled, and these marks are lost.
    """
    importlib.import_module("torch")
    if any(name in sys.modules for name in _MODULES):
        yield
        return
    package, utils = (_Deferred(name) for name in _MODULES)
    vars(package).update(__path__=[], utils=utils, disable=_unmarked)
    vars(utils).update(is_compile_supported=_is_compile_supported)
    sys.modules |= {package.__name__: package, utils.__name__: utils}
    try:
        yield
    finally:
        _give_way()


def _give_way() -> None:
    for name in _MODULES:
        if isinstance(sys.modules.get(name), _Deferred):
            del sys.modules[name]


def _unmarked(function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
    return function


def _is_compile_supported(device: str) -> bool:
    utils = importlib.import_module("torch._dynamo.utils")
    return bool(utils.is_compile_supported(device))
