"""Nested data that needs more stack than the thread has: read and written by a thread with enough.

Decoders written in C recurse. A thread that was made with `threading.stack_size(65536)` would end the
process at 40 objects in objects, or at 200 lists in lists.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeVar

T = TypeVar("T")

_ENOUGH: Final = 4 << 20  # bytes; data within `decoding._MAX_LEVELS` takes about three quarters of it
_LARGE: Final = 64 << 20  # address space; what is not used takes no memory

_making = threading.Lock()


class _Thread(threading.local):
    small: bool | None = None
    large: bool = False


_thread = _Thread()


def is_large() -> bool:
    """True in the threads that `with_large_stack` makes."""
    return _thread.large


def is_small() -> bool:
    """True if the stack of this thread is too small for all but the deepest values."""
    small = _thread.small
    if small is None:
        small = _thread.small = _size() < _ENOUGH
    return small


def _size() -> int:
    """The size of this thread's stack; that of new threads where the system does not say."""
    try:
        if sys.platform.startswith("linux"):
            return _size_on_linux(_libc())
        if sys.platform == "darwin":
            return int(_libc().pthread_get_stacksize_np(ctypes.c_void_p(_libc().pthread_self())))
    except (OSError, AttributeError, ValueError):
        pass
    return threading.stack_size() or _LARGE


@cache
def _libc() -> Any:
    # PyDLL keeps the interpreter lock: other threads must not change a value that is about to be encoded.
    libc: Any = ctypes.PyDLL(None)
    libc.pthread_self.restype = ctypes.c_void_p
    if sys.platform == "darwin":
        libc.pthread_get_stacksize_np.restype = ctypes.c_size_t
    return libc


_Attributes = ctypes.c_char * 256


def _size_on_linux(libc: Any) -> int:
    attributes, size = _Attributes(), ctypes.c_size_t()
    if libc.pthread_getattr_np(ctypes.c_void_p(libc.pthread_self()), attributes):
        raise OSError("the thread's attributes cannot be read")
    libc.pthread_attr_getstacksize(attributes, ctypes.byref(size))
    libc.pthread_attr_destroy(attributes)
    return size.value


def with_large_stack(work: Callable[[], T]) -> T:
    """Return or raise what `work` does, run in a thread of its own with a large stack."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        _thread.large = True
        try:
            results.append(work())
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=run, name="haive-codec", daemon=True)
    with _making:
        before = threading.stack_size(_LARGE)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
