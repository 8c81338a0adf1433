"""Which exceptions a public name can raise, read off the code: its own `raise`s and those of what it calls in here."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

ENTRIES = ("__init__", "__post_init__", "__call__", "__getitem__")


def functions_of(value: Any) -> Iterator[tuple[Callable, type | None]]:
    """A function itself; of a class what its users call, inherited from us or its own, with the class."""
    if not isinstance(value, type):
        yield inspect.unwrap(value), None
        return
    for base in value.__mro__:
        for name, member in vars(base).items() if _is_ours(base) else ():
            function = _plain(member)
            if inspect.isfunction(function) and _is_ours(function) and (name in ENTRIES or not name.startswith("_")):
                yield function, value


def raised_by(function: Callable, owner: type | None, seen: set[Callable]) -> set[str]:
    """Names of the exceptions, as far as calls by plain names, of `self`, and of imported classes and modules lead."""
    if function in seen or function.__code__.co_filename == "<string>":  # a data class's own, made of its fields
        return set()
    seen.add(function)
    found: set[str] = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            found.add(node.exc.func.id)
        elif isinstance(node, ast.Call):
            for called, of in _called(node.func, function, owner):
                found |= raised_by(called, of, seen)
    return found


def _called(node: ast.expr, function: Callable, owner: type | None) -> Iterator[tuple[Callable, type | None]]:
    target, of = None, None
    if isinstance(node, ast.Name):
        target = function.__globals__.get(node.id)
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        of = owner if node.value.id in ("self", "cls") else function.__globals__.get(node.value.id)
        target = _plain(inspect.getattr_static(of, node.attr, None)) if of is not None else None
    if isinstance(target, type):
        yield from ((made, target) for made in map(_plain, map(vars(target).get, ENTRIES[:2])) if _is_ours(made))
    elif inspect.isfunction(target := _plain(target)) and _is_ours(target):
        yield target, of if isinstance(of, type) else None


def _plain(member: Any) -> Any:
    member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    return inspect.unwrap(member) if callable(member) else member


def _is_ours(value: Any) -> bool:
    return callable(value) and (getattr(value, "__module__", None) or "").startswith("maskformer")
