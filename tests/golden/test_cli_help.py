"""The help of every command, as a user sees it on 80 columns."""

import click
import pytest

from golden import FOLDER, check
from sterna.cli.command import Command, LazyGroup
from sterna.cli.main import LAZY, sterna

WIDE = {"terminal_width": 80}
ALIEN = "lab"  # a tool for trying things out; its own tests look at it


def commands(
    command: click.Command = sterna, parent: click.Context | None = None, name: str = "sterna"
) -> list[click.Context]:
    """A context for each command, groups included."""
    context = click.Context(
        command, parent=parent, info_name=name, **WIDE | command.context_settings
    )
    found = [context]
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            if child != ALIEN:
                own = command.get_command(context, child)
                assert own is not None
                found += commands(own, context, child)
    return found


ALL = commands()


def file_of(context: click.Context) -> str:
    return "-".join(["help", *context.command_path.split()[1:]]) + ".txt"


@pytest.mark.parametrize("context", ALL, ids=[c.command_path for c in ALL])
def test_the_help_of_every_command_is_as_it_was_read_by_a_person(context):
    check(file_of(context), f"{context.command.get_help(context)}\n")


def test_no_help_is_left_of_a_command_that_is_gone():
    assert {file.name for file in FOLDER.glob("help*.txt")} == {file_of(c) for c in ALL}


@pytest.mark.parametrize("context", ALL, ids=[c.command_path for c in ALL])
def test_every_command_has_one_line_of_help_and_an_example(context):
    command = context.command
    if not isinstance(command, LazyGroup):
        line = command.get_short_help_str(100)
        assert line.endswith("."), line
        assert len(line) < 75
    assert getattr(command, "examples", ()), "no example"
    if not isinstance(command, click.Group):
        assert isinstance(command, Command)


def test_the_list_of_commands_says_what_each_command_says_of_itself():
    context = ALL[0]
    for name, (_, text) in LAZY.items():
        if name != ALIEN:
            command = sterna.get_command(context, name)
            assert command is not None
            assert command.get_short_help_str(100) == text
