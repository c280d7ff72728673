"""Loading a backbone without torch._dynamo: a second of imports that only torch.compile needs."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
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
    """While a library is imported or used, what it asks of torch._dynamo waits.

    torchvision asks whether a device can compile, when regions are cropped; timm and PyTorch mark
    functions as not to be compiled, which matters as soon as the real module is there.
    """
    importlib.import_module("torch")
    if any(name in sys.modules for name in _MODULES):
        yield
        return
    package, utils = (_Deferred(name) for name in _MODULES)
    vars(package).update(__path__=[], utils=utils, disable=_disable)
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


def _disable(function: Callable[..., Any], *given: object, **options: object) -> Callable[..., Any]:
    """As torch._dynamo.disable, from the moment on that something can be compiled."""
    marked: list[Callable[..., Any]] = []

    @wraps(function)
    def called(*arguments: object, **named: object) -> object:
        real = sys.modules.get(_MODULES[0])
        if real is None or isinstance(real, _Deferred):
            return function(*arguments, **named)
        if not marked:
            marked.append(real.disable(function, *given, **options))
        return marked[0](*arguments, **named)

    return called


def _is_compile_supported(device: str) -> bool:
    utils = importlib.import_module("torch._dynamo.utils")
    return bool(utils.is_compile_supported(device))
