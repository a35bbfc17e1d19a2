"""Whether code is still what it was: a digest of its bytecode, so that snapshots it made expire."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from types import CodeType
from typing import Any


@functools.lru_cache(maxsize=256)
def fingerprint(functions: tuple[Callable[..., Any], ...]) -> str:
    """Return a digest of what the functions do themselves. What they call is not covered.

    Another version of Python compiles to other bytecode: then the digest differs though the source
    does not, which costs a replay, and is never wrong.
    """
    digest = hashlib.sha256()
    for function in functions:
        digest.update(repr(_shape(function.__code__)).encode())
        digest.update(repr((function.__defaults__, function.__kwdefaults__)).encode())
    return digest.hexdigest()[:32]


def is_alone(function: Callable[..., Any]) -> bool:
    """Whether a function is known by its name: one of a module or a class, without a closure."""
    return (
        hasattr(function, "__code__")
        and not function.__code__.co_freevars
        and "<" not in function.__qualname__
    )


def _shape(code: CodeType) -> tuple[object, ...]:
    constants = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            constants.append(repr(_shape(constant)))
        elif isinstance(constant, frozenset):
            # Their order differs from process to process.
            constants.append(repr(sorted(map(repr, constant))))
        else:
            constants.append(repr(constant))
    return (code.co_code, constants, code.co_names, code.co_varnames)
