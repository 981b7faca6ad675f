"""A planted error: where it goes, and whether the tests notice it."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("piggyback", "regularizers", "experiments", "tests", "pyproject.toml")
TIME_LIMIT = 180.0
"""Seconds for the tests of one entry; they need a few."""

_TOKEN = re.compile(
    r"""
    (?P<skipped> \s+ | \\\n | \#[^\n]* )
    | [rbfu]{0,2} (?: \"{3} (?:[^\\]|\\.)*? \"{3} | ' (?:[^'\\\n]|\\.)* '
                    | " (?:[^"\\\n]|\\.)* " )
    | \w+ (?: \.\d+ )?
    | \*\*=? | //=? | >>=? | <<=? | -> | := | [=!<>+\-*/@&|^%]= | .
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True)
class Mutation:
    """``original``, which occurs once in ``function``, becomes ``mutated``.

    file: path of the module, from the root of the repository.
    function: qualified name, as ``Class.method``; empty: outside of any.
    original, mutated: pieces of code; spaces, line breaks, comments and
        trailing commas of the source do not matter.
    breaks: what is wrong afterwards.
    tests: arguments of pytest that are expected to fail.
    """

    file: str
    function: str
    original: str
    mutated: str
    breaks: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """``outcome``: killed, killed by the time limit, survived, or broken (the
    tests could not run at all)."""

    number: int
    file: str
    breaks: str
    outcome: str
    seconds: float

    @property
    def killed(self) -> bool:
        return self.outcome.startswith("killed")


@dataclass(frozen=True)
class _Token:
    text: str
    start: int
    end: int


def falsified(mutation: Mutation, source: str) -> str:
    """``source`` with the planted error.

    Raises ``ValueError`` unless the original occurs exactly once there.
    """
    sought = [token.text for token in _tokens(mutation.original)]
    found = _tokens(source)
    first, last = _extent(mutation, source)
    places = []
    for index in range(len(found) - len(sought) + 1):
        piece = found[index : index + len(sought)]
        inside = first <= piece[0].start and piece[-1].end <= last
        if inside and [token.text for token in piece] == sought:
            places.append((piece[0].start, piece[-1].end))
    if len(places) != 1:
        raise ValueError(
            f"{mutation.file}: {mutation.original!r} occurs {len(places)} "
            f"times, not once, in {mutation.function or 'the module'}"
        )
    start, end = places[0]
    return source[:start] + mutation.mutated + source[end:]


def _tokens(text: str) -> list[_Token]:
    """Words of Python, without what a formatter may change."""
    words = [
        _Token(match.group(), match.start(), match.end())
        for match in _TOKEN.finditer(text)
        if match["skipped"] is None
    ]
    followers = [*[word.text for word in words], ""][1:]
    return [
        word
        for word, follower in zip(words, followers, strict=False)
        if not (word.text == "," and follower in {")", "]", "}"})
    ]


def _extent(mutation: Mutation, source: str) -> tuple[int, int]:
    """First and last character of the function in its file."""
    if not mutation.function:
        return 0, len(source)
    body: Sequence[ast.stmt] = ast.parse(source).body
    node: ast.stmt | None = None
    for name in mutation.function.split("."):
        node = _definition(body, name)
        if node is None:
            raise ValueError(f"{mutation.file} has no {mutation.function}")
        body = node.body
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    assert node.end_lineno is not None
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    lines = source.splitlines(keepends=True)
    start = sum(len(line) for line in lines[: first - 1])
    return start, start + sum(
        len(line) for line in lines[first - 1 : node.end_lineno]
    )


def _definition(
    body: Sequence[ast.stmt], name: str
) -> ast.FunctionDef | ast.ClassDef | None:
    """The function or class of this name, also below an ``if``; of several
    (overloads, setters) the last."""
    found = None
    for statement in body:
        for node in ast.walk(statement):
            named = isinstance(node, ast.FunctionDef | ast.ClassDef)
            if named and node.name == name:
                found = node
    return found


def copy_sources(target: Path) -> None:
    """What the tests need, without caches."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                target / name,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        else:
            shutil.copy(ROOT / name, target / name)


def run_tests(copy: Path, arguments: Sequence[str]) -> tuple[int | None, float]:
    """Exit code of pytest in the copy (None after the time limit) and seconds."""
    # no byte code: two versions of a file may have the same size and time
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    flags = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    command = [sys.executable, "-m", "pytest", *flags, *arguments]
    begin = time.perf_counter()
    try:
        code = subprocess.run(
            command,
            cwd=copy,
            env=environment,
            capture_output=True,
            timeout=TIME_LIMIT,
        ).returncode
    except subprocess.TimeoutExpired:
        code = None
    return code, time.perf_counter() - begin


def judge(copy: Path, number: int, mutation: Mutation) -> Verdict:
    """Plant the error, run its tests, and take it out again."""
    path = copy / mutation.file
    source = path.read_text(encoding="utf-8")
    path.write_text(falsified(mutation, source), encoding="utf-8")
    code, seconds = run_tests(copy, mutation.tests)
    path.write_text(source, encoding="utf-8")
    outcomes = {0: "survived", 1: "killed", None: "killed by the time limit"}
    outcome = outcomes.get(code, f"broken (exit code {code})")
    return Verdict(number, mutation.file, mutation.breaks, outcome, seconds)
