"""One method, two forms, written once as `async`: `obj.method()` blocks, `obj.aio.method()` awaits.

Natively nothing suspends, so the blocking form works anywhere, also inside a running event loop
(Jupyter). In a page only the awaitable form works.
"""

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from wgtrain.gpu import run

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


class dual(Generic[S, P, R]):
    """Decorator of an `async def` method: it blocks on `obj` and is awaitable on `obj.aio`."""

    def __init__(self, method: Callable[Concatenate[S, P], Coroutine[Any, Any, R]]):
        functools.update_wrapper(self, method)  # type: ignore[arg-type]
        self.awaitable = method

    @overload
    def __get__(self, instance: None, owner: type) -> "dual[S, P, R]": ...
    @overload
    def __get__(self, instance: S, owner: type) -> Callable[P, R]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self

        @functools.wraps(self.awaitable)
        def blocking(*args: Any, **kwargs: Any) -> Any:
            return run(self.awaitable(instance, *args, **kwargs))

        return blocking


class dual_iterator(Generic[S, P, R]):
    """The same for an async generator: `for x in obj.f()`, `async for x in obj.aio.f()`."""

    def __init__(self, method: Callable[Concatenate[S, P], AsyncGenerator[R, None]]):
        functools.update_wrapper(self, method)  # type: ignore[arg-type]
        self.awaitable = method

    @overload
    def __get__(self, instance: None, owner: type) -> "dual_iterator[S, P, R]": ...
    @overload
    def __get__(self, instance: S, owner: type) -> Callable[P, Generator[R, None, None]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self

        @functools.wraps(self.awaitable)
        def blocking(*args: Any, **kwargs: Any) -> Any:
            return _iterate(self.awaitable(instance, *args, **kwargs))

        return blocking


class aio_view:
    """The attribute `aio` of a class with dual methods: `aio = aio_view()`."""

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else _Awaitables(instance)


class _Awaitables:
    """The awaitable forms of one object's dual methods."""

    def __init__(self, instance: Any):
        self._instance = instance

    def __getattr__(self, name: str) -> Any:
        method = getattr(type(self._instance), name, None)
        if not isinstance(method, dual | dual_iterator):
            raise AttributeError(
                f"{type(self._instance).__name__} has no awaitable method {name!r}"
            )
        return functools.partial(method.awaitable, self._instance)


class dual_function(Generic[P, R]):
    """Decorator of an `async def` function: `f()` blocks, `f.aio()` is awaitable."""

    def __init__(self, function: Callable[P, Coroutine[Any, Any, R]]):
        functools.update_wrapper(self, function)
        self.aio = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Blocks until the result is there."""
        result: R = run(self.aio(*args, **kwargs))
        return result


def _iterate(source: AsyncGenerator[R, None]) -> Generator[R, None, None]:
    """Drives an async generator, closing it when the loop over it ends early."""
    try:
        while True:
            try:
                item: R = run(source.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        run(source.aclose())
