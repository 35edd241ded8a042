"""Laws of the project as a whole: it starts fast, keeps its word on safety and size, and its documents are true.

Every example on every page runs here, in order, in one namespace a page; every command line in them is parsed by
the real command line; every `make` target and every extra that they name exists.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "sfumato"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILES = sorted(SOURCE.rglob("*.py"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

LONGEST_FILE = 400
LONGER_FOR_A_REASON: dict[str, str] = {
    # "folder/file.py": "why it cannot be two files",
}
HEAVY = ("torch", "numpy", "scipy", "sklearn", "matplotlib", "PIL", "datasets", "diffusers", "tensorboard")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- it starts fast ---


def in_new_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Byte code must be kept, or every start compiles the package again, which is not what a user meets.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )


def best_seconds(tries: int, below: float, measure) -> float:
    """The best of several tries, stopping at the first that is good enough.

    Seconds of the processor, which on an idle machine are those of the clock (starting is one thread that waits for
    nothing) and on a busy one do not count its other work. The rest that a busy machine adds only ever adds: the
    minimum is the figure that says something about us.
    """
    best = float("inf")
    for _ in range(tries):
        best = min(best, measure())
        if best < below:
            break
        time.sleep(0.3)
    return best


def test_importing_sfumato_is_instant_and_loads_nothing_heavy():
    code = (
        "import sys, time; start = time.process_time(); import sfumato; print(time.process_time() - start);"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )

    def measure() -> float:
        result = in_new_process("-c", code)
        assert result.returncode == 0, result.stderr
        seconds, loaded = result.stdout.split("\n")[:2]
        assert loaded == "[]", f"import sfumato also imports {loaded}"
        return float(seconds)

    assert best_seconds(8, 0.3, measure) < 0.3


def test_help_appears_at_once():
    code = "import sys; from sfumato.cli import main; sys.argv = ['sfumato', '--help']; sys.exit(main())"

    def measure() -> float:
        before = os.times()
        result = in_new_process("-c", code)
        after = os.times()
        assert result.returncode == 0, result.stderr
        assert "sfumato" in result.stdout
        return after.children_user - before.children_user + after.children_system - before.children_system

    assert best_seconds(10, 0.5, measure) < 0.5


def test_help_of_every_command_needs_nothing_heavy():
    code = textwrap.dedent(f"""
        import contextlib, io, sys
        from sfumato.cli import app
        names = [name for name in app if not name.startswith("-")]
        assert names, "no commands"
        for name in names:
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
                app([name, "--help"])
            assert len(out.getvalue()) > 80, f"sfumato {{name}} --help says nothing"
            loaded = [heavy for heavy in {HEAVY} if heavy in sys.modules]
            assert not loaded, f"sfumato {{name}} --help imports {{loaded}}"
    """)
    result = in_new_process("-c", code)
    assert result.returncode == 0, result.stderr


# --- its files keep the house rules that ruff cannot hold ---


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_file_is_longer_than_a_reader_can_hold(path: Path):
    lines = len(path.read_text().splitlines())
    name = path.relative_to(SOURCE).as_posix()
    if name in LONGER_FOR_A_REASON:
        assert lines > LONGEST_FILE, f"{name} is short again: take it off the list"
    else:
        assert lines <= LONGEST_FILE, f"{name} has {lines} lines: split it where a second idea begins"


ALLOWED_FOR_A_REASON = {
    # two packages ship weights in no other format; read after their hashes are checked, tensors only
    "evaluation/chemnet.py": "torch.load(path, map_location='cpu', weights_only=True)",
    "evaluation/efficientnet.py": "torch.load(path, map_location='cpu', weights_only=True)",
}
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "jsonpickle",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {
    "torch.load",
    "torch.save",
    "yaml.load",
    "os.system",
    "pandas.read_pickle",
    "pd.read_pickle",
}


def unsafe(tree: ast.AST, allowed: str = "") -> Iterator[str]:
    """What could run code that came with data: pickles under any name, eval, shells; but for one allowed call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in FORBIDDEN_MODULES:
                    yield f"line {node.lineno}: import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            yield f"line {node.lineno}: from {node.module} import ..."
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in FORBIDDEN_CALLS | FORBIDDEN_METHODS and ast.unparse(node) != allowed:
                yield f"line {node.lineno}: {called}(...)"
            for keyword in node.keywords:
                if keyword.arg in {"allow_pickle", "shell", "trust_remote_code"} and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                ):
                    yield f"line {node.lineno}: {called}({keyword.arg}=...)"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "torch.load(path)",
        "np.load(p, allow_pickle=True)",
        "subprocess.run(c, shell=True)",
    ],
)
def test_the_search_for_unsafe_code_finds_it(code: str):
    assert list(unsafe(ast.parse(code)))


def test_the_search_for_unsafe_code_lets_a_network_be_evaluated():
    assert not list(
        unsafe(ast.parse("network.eval(); torch.compile(network); np.load(p, allow_pickle=False)"))
    )


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_file_can_run_what_comes_with_data(path: Path):
    allowed = ALLOWED_FOR_A_REASON.get(path.relative_to(SOURCE).as_posix(), "")
    assert not list(unsafe(ast.parse(path.read_text()), allowed))


def test_every_extra_that_an_error_recommends_exists():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("MissingExtra"):
                values = [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "extra")]
                for value in values:
                    if isinstance(value, ast.Constant):
                        assert value.value in EXTRAS, (
                            f"{relative(path)}:{node.lineno} recommends {value.value!r}"
                        )


# --- its face ---


def documented(thing: object) -> bool:
    if not (inspect.isclass(thing) or inspect.isroutine(thing) or inspect.ismodule(thing)):
        return True  # a plain value, such as the version
    text = thing.__doc__ or ""
    made_up = dataclasses.is_dataclass(thing) and text.startswith(f"{getattr(thing, '__name__', '')}(")
    return bool(text.strip()) and not made_up


def test_every_public_name_can_be_imported_and_says_what_it_is():
    sfumato = importlib.import_module("sfumato")
    assert len(set(sfumato.__all__)) == len(sfumato.__all__)
    assert set(sfumato.__all__) <= set(dir(sfumato))
    for name in sfumato.__all__:
        assert documented(getattr(sfumato, name)), f"sfumato.{name} has no docstring"


def test_a_wrong_public_name_is_an_attribute_error():
    sfumato = importlib.import_module("sfumato")
    with pytest.raises(AttributeError, match="no_such_name"):
        sfumato.no_such_name  # noqa: B018


def test_the_package_says_one_version():
    sfumato = importlib.import_module("sfumato")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sfumato.__version__ == project["version"]
    assert f"[{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()


# --- its documents are true ---


class Block(NamedTuple):
    """A fenced block of a page: its language, its text, and the line it starts on."""

    language: str
    text: str
    line: int


FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)
NOT_RUN = re.compile(r"<!-- not run: .{8,} -->\s*$")


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks in any of these languages; one after a comment `<!-- not run: reason -->` is left out."""
    text = page.read_text() if page.exists() else ""
    return [
        Block(found["language"], textwrap.dedent(found["text"]), text.count("\n", 0, found.start()) + 2)
        for found in FENCE.finditer(text)
        if found["language"] in languages and not NOT_RUN.search(text[: found.start()])
    ]


def commands(page: Path) -> list[tuple[int, list[str]]]:
    """Every command line of a page, each as (line, words), up to the first pipe or redirection."""
    found = []
    for block in blocks(page, "console", "bash", "sh"):
        for offset, line in enumerate(re.sub(r"\\\n", "  ", block.text).split("\n")):
            line = line.strip().removeprefix("$ ")
            if not re.match(r"(sfumato|make|pip)\b", line):
                continue
            parts = re.split(r"\s(?:\||&&|;|>)\s", line)
            found.extend((block.line + offset, shlex.split(part, comments=True)) for part in parts)
    return [(line, words) for line, words in found if words]


with_python = [page for page in PAGES if blocks(page, "python")]
with_commands = [page for page in PAGES if commands(page)]


@pytest.mark.parametrize("page", with_python, ids=relative)
def test_the_examples_of_a_page_run(
    page: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    examples = blocks(page, "python")
    folder = tmp_path / "page"
    if any("runs/" in block.text for block in examples):
        shutil.copytree(request.getfixturevalue("demo_folder"), folder)
    else:
        folder.mkdir()
    monkeypatch.chdir(folder)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in examples:
        # Blank lines before it, so that a traceback names the line of the page.
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        exec(code, namespace)  # noqa: S102


@pytest.mark.parametrize("page", with_commands, ids=relative)
def test_the_command_lines_of_a_page_are_understood(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    monkeypatch.chdir(tmp_path)
    for line, words in commands(page):
        where = f"{relative(page)}:{line}: {' '.join(words)}"
        if words[0] == "make":
            for word in words[1:]:
                assert word in targets or "=" in word, f"{where}: no such target"
        elif words[0] == "pip":
            for extra in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
                assert set(extra.split(",")) <= set(EXTRAS), f"{where}: no such extra"
        else:
            app = importlib.import_module("sfumato.cli").app
            try:
                app.parse_args(words[1:], exit_on_error=False, print_error=False)
            except Exception as error:
                pytest.fail(f"{where}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_the_links_of_a_page_lead_somewhere(page: Path):
    text = page.read_text() if page.exists() else ""
    for found in re.findall(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"", text):
        target = next(filter(None, found))
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{relative(page)} links to {target}"


def test_the_reference_covers_every_part():
    reference = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    files = re.findall(r"^::: ([\w.]+)", reference, re.MULTILINE)
    for name in files:
        path = ROOT / "src" / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), f"there is no {name}"
    shown = {name.split(".")[1] for name in files}
    parts = {
        path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    internal = {"__init__", "__main__", "cli", "serving"}  # the command line has a page of its own
    assert parts - internal <= shown


def test_the_docs_list_every_packaged_recipe():
    from sfumato.recipes.recipe import packaged

    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", (ROOT / "docs" / "recipes.md").read_text(), re.M)
    assert sorted(listed) == sorted(packaged())


def test_the_docs_say_how_much_each_kind_of_data_adds():
    lines = runpy.run_path(str(ROOT / "benchmarks" / "lines.py"))
    table = lines["table"]()
    assert max(int(row.split("|")[2]) for row in table.splitlines()[2:]) <= 400, table
    assert table in (ROOT / "docs" / "domains.md").read_text(), "python benchmarks/lines.py prints it"
    from sfumato.domains import _DOMAINS

    assert set(lines["KINDS"]) == set(_DOMAINS) - {"images"}
