"""The reference of the command line, from its parser."""

import argparse
from collections.abc import Iterator

from docs._build.tables import table
from wmarena.experiments.cli import EPILOG, make_parser

_GLOBAL = "global options"


def page() -> str:
    """Every command with its arguments; the options of all commands are listed once."""
    parser = make_parser()
    parts = [
        "# Commands",
        EPILOG,
        "## Global options {#global}",
        "These options stand before or after any command. `python -m wmarena` is the same as `wmarena`.",
        _options(parser, True),
    ]
    for name, command in subcommands(parser):
        parts += [
            f"## wmarena {name} {{#{name.replace(' ', '-')}}}",
            command.description or "",
            f"```text\n{_usage(command)}\n```",
            _options(command, False),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def subcommands(parser: argparse.ArgumentParser, before: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """(words, parser) of every command that can be called, ``store ls`` included."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                inner = list(subcommands(sub, f"{before}{name} "))
                yield from inner or [(f"{before}{name}", sub)]


def _usage(command: argparse.ArgumentParser) -> str:
    """The usage line without global options."""
    shown = argparse.ArgumentParser(prog=command.prog, add_help=False)
    shown._actions = [a for a in command._actions if a not in _global(command) and a.dest != "help"]
    return shown.format_usage().removeprefix("usage: ").strip()


def _options(command: argparse.ArgumentParser, everywhere: bool) -> str:
    shared = _global(command)
    rows = [
        [_name(action), action.help or ""]
        for action in command._actions
        if (action in shared) == everywhere and action.dest != "help" and action.help != argparse.SUPPRESS
    ]
    return table(["Argument", "Meaning"], rows)


def _name(action: argparse.Action) -> str:
    words = ", ".join(action.option_strings) or action.metavar or action.dest
    if action.choices is not None:
        kinds = "{" + ", ".join(map(str, action.choices)) + "}"
        return f"`{words} {kinds}`" if action.option_strings else f"`{kinds}`"
    takes = action.option_strings and action.nargs != 0
    return f"`{words} {action.metavar or action.dest.upper()}`" if takes else f"`{words}`"


def _global(command: argparse.ArgumentParser) -> list[argparse.Action]:
    groups = [g for g in command._action_groups if g.title == _GLOBAL]
    return [action for group in groups for action in group._group_actions]
