"""A script that runs in this process as in one of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from profiler.cli import parse
from profiler.commands.script import ScriptEnd, run_script
from profiler.errors import UsageError


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., ScriptEnd]]:
    """Runs a script of this text; after the test the process is as it was."""
    kept = {name: sys.modules[name] for name in ("__main__",)}
    argv, path = sys.argv, list(sys.path)

    def script(text: str, *arguments: str) -> ScriptEnd:
        file = tmp_path / "script.py"
        file.write_text(dedent(text))
        return run_script(str(file), arguments)

    yield script
    sys.modules.update(kept)
    sys.argv, sys.path[:] = argv, path


def test_script_is_main_with_its_own_arguments_and_folder(
    run: Callable[..., ScriptEnd], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "beside_it.py").write_text("value = 3\n")
    ended = run(
        """
        import pickle, sys
        import beside_it
        class Thing: pass
        assert __name__ == "__main__" and sys.modules["__main__"].Thing is Thing
        assert __spec__ is None and __builtins__ is not None
        pickle.loads(pickle.dumps(Thing()))
        print(sys.argv[1:], __file__, sys.path[0], beside_it.value)
        """,
        "a",
        "--flag",
    )
    assert ended == ScriptEnd(0)
    file = tmp_path / "script.py"
    assert capsys.readouterr().out == f"['a', '--flag'] {file} {tmp_path} 3\n"


@pytest.mark.parametrize(
    ("text", "code", "err"),
    [
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit(-1)", 255, ""),
        ("import sys; sys.exit('bye')", 1, "bye\n"),
        ("raise SystemExit(False)", 0, ""),
    ],
)
def test_exit_code_is_the_script_s_own(
    run: Callable[..., ScriptEnd], capsys: pytest.CaptureFixture[str], text: str, code: int, err: str
) -> None:
    assert run(text) == ScriptEnd(code)
    assert capsys.readouterr().err == err


def test_traceback_is_the_one_that_python_shows(
    run: Callable[..., ScriptEnd], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = run(
        "def f():\n    1 / 0\ntry:\n    f()\nexcept ZeroDivisionError as e:\n    raise KeyError(1) from e\n"
    )
    assert (ended.code, type(ended.error)) == (1, KeyError)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("  File")] == [
        f'  File "{tmp_path}/script.py", line 4, in <module>',
        f'  File "{tmp_path}/script.py", line 2, in f',
        f'  File "{tmp_path}/script.py", line 6, in <module>',
    ]
    assert lines[-1] == "KeyError: 1"


def test_syntax_error_is_shown_with_its_line(
    run: Callable[..., ScriptEnd], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("print('fine')\nthis none is\n").code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f'  File "{tmp_path}/script.py", line 2\n')
    assert said.err.endswith("SyntaxError: invalid syntax\n")


def test_interrupt_is_handed_on(run: Callable[..., ScriptEnd], capsys: pytest.CaptureFixture[str]) -> None:
    ended = run("raise KeyboardInterrupt")
    assert (ended.code, type(ended.error)) == (130, KeyboardInterrupt)
    assert capsys.readouterr().err.endswith("KeyboardInterrupt\n")


def test_threads_of_the_script_are_waited_for(
    run: Callable[..., ScriptEnd], capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        """
        import threading
        go = threading.Event()
        threading.Thread(target=lambda: (go.wait(), print("late"))).start()
        print("first")
        threading.Timer(0, go.set).start()
        """
    )
    assert capsys.readouterr().out == "first\nlate\n"


def test_pool_that_the_script_leaves_open_ends_with_what_it_was_given(
    run: Callable[..., ScriptEnd], capsys: pytest.CaptureFixture[str]
) -> None:
    ended = run(
        """
        import threading
        from concurrent.futures import ThreadPoolExecutor
        pool, go = ThreadPoolExecutor(1), threading.Event()
        pool.submit(lambda: (go.wait(), print("late")))
        pool.submit(print, "later")
        print("first")
        threading.Timer(0, go.set).start()
        """
    )
    assert (capsys.readouterr().out, ended.code) == ("first\nlate\nlater\n", 0)


def test_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"^none\.py: No such file or directory \(what ends in \.py"):
        run_script("none.py", ())


@pytest.mark.parametrize(
    ("argv", "what", "rest"),
    [
        (["run"], None, []),
        (["run", "a prompt", "--emulate"], "a prompt", []),
        (["run", "s.py", "a", "--emulate", "-x"], "s.py", ["a", "--emulate", "-x"]),
        (["--debug", "run", "--emulate", "--seed", "3", "s.py", "--out"], "s.py", ["--out"]),
        (["run", "--seed=3", "--emul", "--out", "o.py", "s.py", "1"], "s.py", ["1"]),
        (["run", "--", "s.py", "--debug"], "s.py", ["--debug"]),
        (["run", "--prompt", "s.py"], None, []),
        (["run", "--agent", "m:f", "Explain main.py please", "--open"], "Explain main.py please", []),
    ],
)
def test_what_follows_a_script_is_its_own(argv: list[str], what: str | None, rest: list[str]) -> None:
    found = parse(argv)
    assert (found.what, found.script_arguments) == (what, rest)
