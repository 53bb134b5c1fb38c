"""Modules that stand in for packages which decoding needs not, such as torch.

The trainers' modules import them for training. A stand-in has every attribute that is asked for,
and each does nothing: whatever decoding used of it would come out wrong.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types


class _Kind(type):
    """The class of stand-in classes. Called with a function or a class alone, as a decorator is,
    they return that."""

    def __getattr__(cls, name):
        return _member(cls, name)

    def __call__(cls, *args, **kwargs):
        if len(args) == 1 and callable(args[0]) and not kwargs:
            return args[0]
        return super().__call__()


class _Nothing(metaclass=_Kind):
    def __getattr__(self, name):
        return _member(type(self), name)

    def __call__(self, *args, **kwargs):
        return args[0] if len(args) == 1 and callable(args[0]) else self


def _member(owner, name: str) -> type:
    # Python and its inspection ask for names such as `__wrapped__` that have a meaning.
    if name.startswith("__"):
        raise AttributeError(name)
    member = _Kind(name, (_Nothing,), {})
    setattr(owner, name, member)
    return member


class _Module(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name):
        return _member(self, name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names):
        self.names = names

    def find_spec(self, fullname, path=None, target=None):
        if any(f"{fullname}.".startswith(f"{name}.") for name in self.names):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


def stand_in_for(*names: str) -> None:
    """Puts stand-ins in the place of these modules and of everything in them."""
    sys.meta_path.insert(0, _Finder(names))


def without_init(*names: str) -> None:
    """Imports these packages without running their `__init__`, which would import the trainer."""
    for name in names:
        spec = importlib.util.find_spec(name)
        package = types.ModuleType(name)
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules[name] = package
