"""The functions behind names of tools are found in whatever holds them, exchanged in place, and put back."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import inspect
import pickle
import sys
import types
import typing
import weakref
from dataclasses import dataclass

import pytest

from profiler.watch.discovery import Exchange, _inside, exchange, functions_of, place_of
from profiler.watch.places import is_application, is_code_of_application, place


def disc_plain(a: int, b: int = 2, *, c: int = 3) -> int:
    """Adds them."""
    return a + b + c


async def disc_async(a: int) -> int:
    await asyncio.sleep(0)
    return a


def disc_generator(n: int):
    yield from range(n)


async def disc_async_generator(n: int):
    for i in range(n):
        yield i


def closures():
    ten = 10

    def disc_inner(a: int) -> int:
        return a + ten

    def disc_recursive(n: int) -> int:
        return 1 if n < 2 else n * disc_recursive(n - 1)

    return disc_inner, disc_recursive


class Base:
    def __init__(self) -> None:
        self.value = 5

    def disc_method(self, a: int) -> int:
        return self.value + a

    @classmethod
    def disc_of_class(cls, a: int) -> tuple[str, int]:
        return cls.__name__, a

    @staticmethod
    def disc_static(a: int) -> int:
        return a


class Derived(Base):
    def disc_method(self, a: int) -> int:
        return super().disc_method(a) + 1


def library_wrapper(function):
    """As a decorator of a library does; its code is Python's own."""
    return functools.lru_cache(maxsize=4)(function)


@library_wrapper
def disc_cached(a: int) -> int:
    return a


@dataclass
class ToolSpec:
    name: str
    func: object


def found(name: str) -> list[str]:
    return sorted(function.__qualname__ for function in functions_of([name]).get(name, ()))


def test_functions_are_found_by_their_own_names():
    assert found("disc_plain") == ["disc_plain"]
    assert found("disc_cached") == ["disc_cached"]
    assert found("disc_method") == ["Base.disc_method", "Derived.disc_method"]
    assert found("disc_of_class") == ["Base.disc_of_class"]
    assert found("disc_static") == ["Base.disc_static"]
    assert found("no function has this name") == []


def test_functions_are_found_by_what_holds_them_under_another_name():
    thing = Base()
    partly = functools.partial(disc_async, 1)
    held = {"disc-key": disc_async, "disc-method": thing.disc_method, "disc-partial": partly}
    spec = ToolSpec("disc-spec", disc_plain)
    plain = {"name": "disc-dict", "description": "", "function": disc_generator}
    assert found("disc-key") == ["disc_async"]
    assert found("disc-method") == ["Base.disc_method"]
    assert found("disc-partial") == ["disc_async"]
    assert found("disc-spec") == ["disc_plain"]
    assert found("disc-dict") == ["disc_generator"]
    assert (len(held), spec.name, plain["name"]) == (3, "disc-spec", "disc-dict")


def test_code_of_libraries_is_never_found():
    registry = {"disc-library": asyncio.sleep, "disc-c": len, "disc-class": Base}
    assert [found(name) for name in registry] == [[], [], []]
    assert found("dumps") == []


@pytest.mark.parametrize(
    ("filename", "own"),
    [
        (__file__, True),
        ("<stdin>", True),
        ("<ipython-input-1-abc>", True),
        ("<frozen importlib._bootstrap>", False),
        (asyncio.__file__, False),
        (pytest.__file__, False),
        (inspect.getsourcefile(exchange), False),
    ],
)
def test_which_code_is_the_application_s(filename: str, own: bool):
    assert is_application(filename) is own


def test_a_place_is_relative_to_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert place(str(tmp_path / "agent.py"), 12) == "agent.py:12"
    assert place("/elsewhere/agent.py", 12) == "/elsewhere/agent.py:12"


def test_an_exchanged_function_does_what_it_did_wherever_it_is_held():
    calls: list[str] = []

    def choose(original):
        def chosen(args, kwargs):
            def run(*args, **kwargs):
                calls.append(original.__name__)
                return original(*args, **kwargs)

            return run

        return chosen

    inner, recursive = closures()
    functions = [disc_plain, disc_async, disc_generator, disc_async_generator, inner, recursive]
    functions += [Base.disc_method, Derived.disc_method, Base.disc_of_class.__func__, Base.disc_static]
    held_before = {function.__qualname__: function for function in functions}
    told = [
        (f.__name__, f.__qualname__, f.__doc__, f.__module__, inspect.signature(f), inspect.getsource(f))
        for f in functions
    ]
    kinds = [(inspect.iscoroutinefunction(f), inspect.isasyncgenfunction(f)) for f in functions]
    codes = [function.__code__ for function in functions]
    undo = [exchange(function, choose) for function in functions]

    async def items():
        return [item async for item in disc_async_generator(2)], await disc_async(4)

    for _ in range(2):
        assert held_before["disc_plain"](1, c=1) == 4
        assert asyncio.run(items()) == ([0, 1], 4)
        assert (list(disc_generator(2)), inner(1), recursive(3)) == ([0, 1], 11, 6)
        assert (Base().disc_method(1), Derived().disc_method(1)) == (6, 7)
        assert (Derived.disc_of_class(1), Base.disc_static(1)) == (("Derived", 1), 1)
        with pytest.raises(TypeError, match="missing 1 required positional argument"):
            disc_plain()
        assert told == [
            (f.__name__, f.__qualname__, f.__doc__, f.__module__, inspect.signature(f), inspect.getsource(f))
            for f in functions
        ]
        assert kinds == [(inspect.iscoroutinefunction(f), inspect.isasyncgenfunction(f)) for f in functions]
        assert typing.get_type_hints(disc_plain) == {"a": int, "b": int, "c": int, "return": int}
        assert copy.deepcopy(disc_plain) is disc_plain
        once = {"disc_plain": 2, "disc_recursive": 3, "disc_method": 3}
        names = ["disc_async_generator", "disc_async", "disc_generator", "disc_inner"]
        names += ["disc_of_class", "disc_static"]
        expected = once | dict.fromkeys(names, 1)
        assert {name: calls.count(name) for name in {*calls}} == (expected if undo else {})
        calls.clear()
        for one in undo:
            one()
        undo = []
    assert [function.__code__ for function in functions] == codes
    assert not any("__signature__" in function.__dict__ for function in functions)


def test_two_may_exchange_one_function_and_put_it_back_in_any_order():
    code = disc_plain.__code__
    calls: list[str] = []

    def named(name: str):
        def choose(original):
            def chosen(args, kwargs):
                if kwargs.get("c") != name:
                    return None
                return lambda *args, **kwargs: calls.append(name)

            return chosen

        return choose

    first = exchange(disc_plain, named("first"))
    second = exchange(disc_plain, named("second"))
    disc_plain(1, c="first")
    disc_plain(1, c="second")
    assert disc_plain(1) == 6
    first()
    disc_plain(1, c="second")
    assert calls == ["first", "second", "second"]
    assert disc_plain.__code__ is not code
    second()
    second()
    assert disc_plain.__code__ is code


def test_the_copy_is_found_by_no_later_look():
    one = Exchange(disc_plain)
    try:
        assert found("disc_plain") == ["disc_plain"]
        assert functions_of(["disc_plain"])["disc_plain"] == [disc_plain]
        assert place_of(disc_plain).endswith(f"test_watch_discovery.py:{one.code.co_firstlineno}")
    finally:
        one.restore()


def test_a_signature_of_its_own_is_kept():
    def disc_signed(*args):
        return args

    disc_signed.__signature__ = inspect.Signature()
    one = Exchange(disc_signed)
    assert inspect.signature(disc_signed) == inspect.Signature()
    one.restore()
    assert disc_signed.__signature__ == inspect.Signature()


def test_an_exchanged_function_keeps_its_parameters_where_applications_look_for_them():
    def disc_seen(a, b=2, /, c=3, *more, d, e=5, **others):
        return a, b, c, more, d, e, others

    def taken(function):
        code = function.__code__
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        return names, code.co_argcount, code.co_posonlyargcount

    before, asked = taken(disc_seen), []
    undo = exchange(disc_seen, lambda original: lambda args, kwargs: asked.append((args, kwargs)))
    try:
        assert taken(disc_seen) == before
        assert disc_seen(1, d=4) == (1, 2, 3, (), 4, 5, {})
        assert disc_seen(1, 7, c=8, d=4, f=6) == (1, 7, 8, (), 4, 5, {"f": 6})
        assert disc_seen(1, 7, 8, 9, d=4, e=6) == (1, 7, 8, (9,), 4, 6, {})
        assert asked == [
            ((1,), {"d": 4}),
            ((1, 7), {"c": 8, "d": 4, "f": 6}),
            ((1, 7, 8, 9), {"d": 4, "e": 6}),
        ]
        for call in (disc_seen, lambda: disc_seen(1), lambda: disc_seen(1, f=2)):
            with pytest.raises(TypeError, match=r"disc_seen\(\) missing"):
                call()
        assert len(asked) == 6  # a call with wrong arguments is a call, too
    finally:
        undo()
    assert (disc_seen.__defaults__, disc_seen.__kwdefaults__) == ((2, 3), {"e": 5})


def test_an_exchanged_function_recurses_half_as_deep_at_least():
    def disc_deep(n):
        return n and 1 + disc_deep(n - 1)

    undo = exchange(disc_deep, lambda original: lambda args, kwargs: None)
    try:
        assert disc_deep(sys.getrecursionlimit() * 2 // 5) == sys.getrecursionlimit() * 2 // 5
    finally:
        undo()


def test_a_function_that_is_made_anew_is_not_kept():
    def make():
        def disc_anew():
            return 1

        return disc_anew

    function = make()
    exchange(function, lambda original: lambda args, kwargs: None)
    gone = weakref.ref(function)
    del function
    gc.collect()
    assert gone() is None


def test_a_function_that_was_edited_meanwhile_keeps_its_new_code():
    def disc_edited():
        return "old"

    def edited(a="new"):
        return a

    undo = exchange(disc_edited, lambda original: lambda args, kwargs: None)
    disc_edited.__code__, disc_edited.__defaults__ = edited.__code__, edited.__defaults__
    undo()
    assert disc_edited() == "new"


def test_a_function_that_is_pickled_by_its_code_is_sent_as_it_would_be_unwatched():
    def disc_sent(a, b=2):
        return a, b

    undo = exchange(disc_sent, lambda original: lambda args, kwargs: None)
    try:
        (instead,) = [one for one in disc_sent.__code__.co_consts if isinstance(one, Exchange)]
        make, arguments = instead.__reduce__()
        missing = pickle.loads(pickle.dumps(disc_sent.__defaults__))
        run, args, kwargs = make(*arguments)((), (1, missing[1]), (), (), {})
        assert run(*args, **kwargs) == (1, 2)
    finally:
        undo()


def test_code_that_stands_for_a_function_is_no_place_of_the_application():
    seen: list[str] = []

    def disc_called(a: int) -> int:
        return a

    def choose(original):
        def chosen(args, kwargs):
            frame = sys._getframe()
            while frame is not None and len(seen) < 3:
                if is_code_of_application(frame.f_code):
                    seen.append(frame.f_code.co_name)
                frame = frame.f_back
            return original

        return chosen

    def caller() -> int:
        return disc_called(1)

    undo = exchange(disc_called, choose)
    assert caller() == 1
    assert not is_code_of_application(disc_called.__code__)
    undo()
    assert seen[:2] == ["chosen", "caller"]
    assert is_code_of_application(disc_called.__code__)


def decorated(function):
    """As decorators of frameworks do: the function is in the closure of what the tool object holds."""

    async def invoke(arguments):
        return function(**arguments)

    class FunctionTool:
        def __init__(self) -> None:
            self.name, self.on_invoke_tool = function.__name__, functools.partial(invoke)

    FunctionTool.__module__ = "asyncio"  # no class of the application's
    return FunctionTool()


@decorated
def disc_decorated(city: str) -> str:
    return city


def test_function_in_a_framework_s_tool_is_found_where_objects_are_frozen():
    assert gc.get_freeze_count()  # tests/conftest.py freezes what was imported
    # What the decorator made is the application's here, too.
    assert found("disc_decorated") == ["decorated.<locals>.invoke", "disc_decorated"]


class DiscKept:
    def __init__(self) -> None:
        self.tools = [disc_decorated]


def test_of_data_that_modules_keep_only_what_may_hold_a_tool_is_looked_at():
    kept = DiscKept()
    data = {"rows": [[1, "a", 2.0, None, b"b", frozenset((3,)), 4j]] * 3, "kept": kept, "kind": DiscKept}
    seen = [*_inside([data], 5)]
    tool = type(disc_decorated)
    assert {type(one) for one in seen} == {dict, list, type, types.FunctionType, DiscKept, tool}
    assert [one for one in seen if type(one) is list] == [data["rows"], data["rows"][0], kept.tools]
    assert sum(one is disc_decorated for one in seen) == 1


def test_class_without_a_hash_keeps_nothing_from_being_found():
    class Meta(type):  # noqa: PLW1641 (without a hash: that is the point)
        def __eq__(cls, other: object) -> bool:
            raise ValueError("not to be compared")

    class Odd(metaclass=Meta):
        def __init__(self) -> None:
            self.tool = disc_plain

    assert disc_plain in [
        one for one in _inside([[Odd(), {"city": "Rome"}, [disc_plain]]], 4) if callable(one)
    ]


def test_file_of_a_library_by_a_link_is_no_application_s(tmp_path):
    library = tmp_path / "site-packages" / "disc_library"
    library.mkdir(parents=True)
    (tmp_path / "own").mkdir()
    (library / "tools.py").touch()
    (tmp_path / "linked").symlink_to(library)
    (tmp_path / "own" / "tools.py").symlink_to(library / "tools.py")
    (tmp_path / "own" / "agent.py").touch()
    assert not is_application(str(tmp_path / "linked" / "tools.py"))
    assert not is_application(str(tmp_path / "own" / "tools.py"))
    assert is_application(str(tmp_path / "own" / "agent.py"))
