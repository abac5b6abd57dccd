"""Locust and gevent stay where they are used, and the environment is the user's."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import profiler

PACKAGE = Path(profiler.__file__).parent
LOCUST = {"locust", "gevent", "greenlet", "zmq", "flask"}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    """Top-level packages that a module imports, wherever in it: in functions and for type checkers too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
    return found


def writes_environment(node: ast.AST) -> bool:
    """`os.environ[...] = …`, `del os.environ[...]`, `os.environ.pop(…)` and the like."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        return ast.unparse(node.value) == "os.environ"
    if isinstance(node, ast.Call):
        changes = ("pop", "popitem", "update", "setdefault", "clear")
        return ast.unparse(node.func) in {"os.putenv", *(f"os.environ.{name}" for name in changes)}
    return False


def test_locust_and_what_it_runs_on_are_imported_by_load_locust_alone() -> None:
    users = {path for path, tree in sources() if imported(tree) & LOCUST}
    assert users
    assert {path for path in users if not path.startswith("load/locust/")} == set()


def test_environment_is_written_by_nothing() -> None:
    found = [path for path, tree in sources() for node in ast.walk(tree) if writes_environment(node)]
    assert found == []
    forbidden = "os.environ['A'] = 'x'; del os.environ['A']; os.environ.pop('A'); os.putenv('A', 'x')"
    assert sum(writes_environment(node) for node in ast.walk(ast.parse(forbidden))) == 4


def test_start_of_a_load_test_imports_neither() -> None:
    script = (
        "import sys\n"
        "from profiler.cli import main\n"
        "main(['scenarios'])\n"
        "import profiler.load.experiment, profiler.load.estimate, profiler.commands.compare\n"
        f"print(sorted({LOCUST!r} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout.splitlines()[-1], done.stderr) == ("[]", "")
