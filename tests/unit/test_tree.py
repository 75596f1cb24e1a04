"""What the tree says about itself is true: commands in the docs exist, links lead somewhere, sizes hold."""

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

from sterna.cli.command import Settings
from sterna.cli.main import sterna

TREE = Path(__file__).parents[2]
TEXTS = sorted([*TREE.glob("*.md"), *(TREE / "docs").rglob("*.md")])
SOURCES = sorted((TREE / "src").rglob("*.py"))
OURS = [
    path
    for folder in ("src", "tests", "bench", "docs", "scripts", "packaging", "requirements", ".ci")
    for path in (TREE / folder).rglob("*")
    if path.is_file() and not {"__pycache__", "_build", "results"} & set(path.parts)
] + [path for path in TREE.iterdir() if path.is_file() and not path.name.startswith(".")]

# Hosts that may be named: reserved for documentation, or this machine.
OUTSIDE = re.compile(
    r"https?://(?!(ADDRESS|HOST|host\b|localhost|unix|127\.|10\.|192\.0\.2\.|198\.51\.100\.|203\.0\.113\.|"
    r"\[|\{|[a-z.-]+\.(invalid|example|test)\b|www\.apache\.org/licenses|host-|hv-|[a-z]\b))[^\s\"'`)>]+"
)


def blocks(text: str, languages: tuple[str, ...]) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def shell_lines() -> list[tuple[str, str]]:
    return [
        (path.relative_to(TREE).as_posix(), line.strip())
        for path in TEXTS
        for block in blocks(path.read_text(), ("sh",))
        for line in block.replace("\\\n", " ").splitlines()
    ]


def commands(line: str) -> list[list[str]]:
    """The calls of sterna in a line of shell, as words."""
    calls = re.findall(r"(?:^|[\s(;&|'])(sterna\s[^|;&)#>'\n]*)", line)
    return [shlex.split(call)[1:] for call in calls]


TYPED = [
    (where, call)
    for where, line in shell_lines()
    for call in commands(line)
    if call and call[0] != "COMMAND"
]


def find(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that `words` call, and the words that are left for it."""
    command: click.Command = sterna
    context = click.Context(sterna, info_name="sterna", obj=Settings(), **sterna.context_settings)
    while isinstance(command, click.Group):
        words = drop_shared(words)
        assert words, f"{context.command_path} needs a command"
        child = command.get_command(context, words[0])
        assert child is not None, f"{context.command_path} has no command {words[0]}"
        context = click.Context(child, info_name=words[0], parent=context, obj=Settings())
        command, words = child, words[1:]
    return command, words


def drop_shared(words: list[str]) -> list[str]:
    while words[:1] in (["--host"], ["-o"], ["--certificate"]):
        words = words[2:]
    return words


@pytest.mark.parametrize(
    ("where", "call"), TYPED, ids=[f"{where}: {' '.join(call)}" for where, call in TYPED]
)
def test_a_command_in_the_docs_exists_with_its_options(where, call):
    if {"--help", "--version"} & set(call):
        return
    command, words = find(call)
    top = click.Context(sterna, obj=Settings(), **sterna.context_settings)  # says what -h is
    context = click.Context(command, parent=top, info_name=command.name)
    known = {
        option
        for parameter in command.get_params(context)
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    for word in words:
        if word.startswith("-") and word != "-":
            assert word.split("=")[0] in known, f"{where}: {command.name} has no option {word}"


def test_the_docs_are_looked_at():
    assert len(TYPED) > 20


def test_every_make_target_in_the_docs_exists():
    targets = set(re.findall(r"^([a-z-]+):", (TREE / "Makefile").read_text(), re.MULTILINE))
    named = {
        name
        for path in TEXTS
        for name in re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), re.MULTILINE)
    }
    assert named <= targets
    assert {"demo", "test"} <= named


def test_links_between_texts_lead_somewhere():
    dead = [
        f"{path.relative_to(TREE)}: {target}"
        for path in TEXTS
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text())
        if not (path.parent / target).exists()
    ]
    assert dead == []


XML_NAMES = "http://libvirt.org/schemas/"  # names of vocabularies: nobody fetches them


def test_no_address_of_the_outside_world_is_built_in():
    found = [
        f"{path.relative_to(TREE)}: {match.group()}"
        for path in OURS
        if path.name not in {"LICENSE", "openapi.json"} and path.suffix not in {".pyc", ".gz"}
        for match in OUTSIDE.finditer(path.read_text(errors="replace"))
        if not match.group().startswith(XML_NAMES)
    ]
    assert found == []


def test_locks_are_exact_and_hashed():
    for lock in (TREE / "requirements").glob("*.txt"):
        pins = re.findall(r"^[a-z0-9].*", lock.read_text(), re.MULTILINE)
        assert pins
        assert all("==" in pin and pin.endswith("\\") for pin in pins)
        assert "://" not in lock.read_text()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(TREE).as_posix())
def test_a_module_says_what_it_promises_and_stays_readable(path):
    text = path.read_text()
    if not text.strip():
        return  # the __init__ of a package
    assert ast.get_docstring(ast.parse(text)), "a module begins with its promise"
    assert len(text.splitlines()) <= 600
    assert not re.search(r"(^|_)(utils?|helpers?|common|manager)$", path.stem)


def test_the_parts_of_a_dependency_under_another_licence_are_not_used():
    users = [
        path.name for path in SOURCES if re.search(r"qmp[. ]+(import )?legacy", path.read_text())
    ]
    assert users == []


def test_the_architecture_can_be_read_in_one_sitting():
    assert len((TREE / "ARCHITECTURE.md").read_text().splitlines()) <= 200


def test_paths_in_the_architecture_exist():
    text = (TREE / "ARCHITECTURE.md").read_text()
    tree = blocks(text, ("",))[1]
    named = set(re.findall(r"\b([a-z0-9_]+\.py)\b", tree))
    there = {path.name for path in SOURCES}
    assert named <= there
