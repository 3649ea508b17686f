"""Manual pages, made from the commands themselves, so that they cannot say anything else (SPEC 8.1).

A help text's paragraphs become paragraphs; what stands behind a backspace character, as examples do, keeps its lines.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator

import click

from muster.client.errors import ClientError
from muster.setup.installation import Page

DAEMON = "musterd"
EXIT_CODES = (
    (0, "done"),
    (1, "refused, or what was asked for did not come about"),
    (2, "the command line, or a file named on it, is wrong"),
    (3, "no node answers"),
    (130, "interrupted"),
)
DAEMON_EXIT_CODES = (
    (0, "the node left the cluster gracefully, or was stopped before it ran anything"),
    (2, "the command line is wrong"),
    (3, "the start is refused; standard error says why, and what to do"),
    (70, "the node panicked: everything that it ran was stopped at once; its log says why"),
)
_LITERAL = "\b"
_SEE_ALSO = f"{DAEMON}(8)"


def pages(program: click.Command, release: str) -> list[Page]:
    """The pages of a command and of all commands below it, and that of the daemon. Raises `ClientError`."""
    found = [_command_page(path, context, release) for path, context in commands_of(program)]
    return [*found, _daemon_page(release)]


def commands_of(program: click.Command) -> Iterator[tuple[tuple[str, ...], click.Context]]:
    """A command and all commands below it, each with its words and a context."""
    pending: list[tuple[tuple[str, ...], click.Context]] = [
        ((str(program.name),), click.Context(program, info_name=program.name))
    ]
    while pending:
        words, context = pending.pop(0)
        yield words, context
        command = context.command
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                if below is not None and not below.hidden:
                    pending.append(((*words, name), click.Context(below, info_name=name, parent=context)))


def reference(program: click.Command) -> str:
    """All commands in one page of Markdown: what each does, its arguments and options, and how it ends."""
    lines = ["# Commands", "", "Made by `muster man --output docs --markdown` (`make docs`); a test compares.", ""]
    lines += ["## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES]
    lines += ["", "Every error is said on standard error: what is wrong, `where:`, and `next:`.", ""]
    lines += ["| `musterd` ends with | meaning |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in DAEMON_EXIT_CODES]
    common = {option for _, context in commands_of(program) if len(context.command_path.split()) == 1
              for each in context.command.params for option in each.opts}  # fmt: skip
    for words, context in commands_of(program):
        command = context.command
        pieces = " ".join([*words, *command.collect_usage_pieces(context)])
        lines += ["", f"## {' '.join(words)}", "", f"`{pieces}`", "", f"{_summary(command)}."]
        shown = [
            f"| `{record[0]}` | {' '.join(record[1].split()).replace('|', '/')} |"
            for each in command.params
            if isinstance(each, click.Option) and (len(words) == 1 or not common & set(each.opts))
            if (record := each.get_help_record(context))
        ]
        if shown:
            lines += ["", "| option | |", "|---|---|", *shown]
    return "\n".join(lines) + "\n"


def _command_page(words: tuple[str, ...], context: click.Context, release: str) -> Page:
    command = context.command
    name = "-".join(words)
    lines = _head(name, "1", release)
    lines += [".SH NAME", f"{_escaped(name)} \\- {_escaped(_summary(command))}"]
    usage = " ".join(command.collect_usage_pieces(context))
    lines += [".SH SYNOPSIS", f".B {_escaped(' '.join(words))}", _escaped(usage)]
    lines += [".SH DESCRIPTION", *_paragraphs(command.help or "")]
    options = [
        record
        for parameter in command.params
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context))
    ]
    if options:
        lines += [".SH OPTIONS"]
        for option, text in options:
            lines += [".TP", f".B {_escaped(option)}", _escaped(" ".join(text.split()))]
    if isinstance(command, click.Group):
        lines += [".SH COMMANDS"]
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            if found is not None and not found.hidden:
                lines += [".TP", f".BR {_escaped(f'{name}-{below}')} (1)", _escaped(_summary(found))]
    lines += _environment(command)
    if len(words) == 1:
        lines += [".SH SEE ALSO", _escaped(_SEE_ALSO)]
    else:
        lines += [".SH EXIT STATUS", "As in", f".BR {_escaped(words[0])} (1)."]
        lines += [".SH SEE ALSO", f".BR {_escaped('-'.join(words[:-1]))} (1),", f".BR {DAEMON} (8)"]
    return Page(f"{name}.1", "\n".join(lines) + "\n")


def _environment(command: click.Command) -> list[str]:
    found = [
        (str(parameter.envvar), max(parameter.opts, key=len))
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.envvar
    ]
    if not found:
        return []
    lines = [".SH ENVIRONMENT"]
    for variable, option in found:
        lines += [".TP", f".B {variable}", f"Taken where {_escaped(option)} is not given."]
    return lines


def _head(name: str, section: str, release: str) -> list[str]:
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return [f'.TH "{_escaped(name.upper())}" {section} "{day}" "Muster {_escaped(release)}" "Muster"']


def _summary(command: click.Command) -> str:
    text = (command.help or command.short_help or "").strip().split("\n\n", 1)[0]
    return " ".join(text.replace(_LITERAL, " ").split()).rstrip(".")


def _paragraphs(help_text: str) -> list[str]:
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", _dedented(help_text)):
        literal = paragraph.lstrip().startswith(_LITERAL)
        text = paragraph.replace(_LITERAL, "").strip("\n")
        if not text.strip():
            continue
        lines.append(".PP")
        if literal:
            lines += [".nf", *(_escaped(line) for line in text.splitlines() if line.strip()), ".fi"]
        else:
            lines.append(_escaped(" ".join(text.split())))
    return lines


def _dedented(text: str) -> str:
    margins = [len(line) - len(line.lstrip()) for line in text.splitlines()[1:] if line.strip(f" {_LITERAL}")]
    margin = min(margins, default=0)
    first, *rest = text.splitlines() or [""]
    return "\n".join([first, *(line[margin:] if line[:margin].isspace() else line for line in rest)])


def _escaped(text: str) -> str:
    """Text for troff: nothing in it is a request, and hyphens can be copied as such."""
    safe = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{safe}" if safe.startswith((".", "'")) else safe


def _daemon_page(release: str) -> Page:
    command = [sys.executable, "-m", "muster.daemon.main", "--help"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ClientError(f"{DAEMON} --help failed: {error}", DAEMON, "install Muster whole, and try again") from error
    lines = _head(DAEMON, "8", release)
    lines += [".SH NAME", f"{DAEMON} \\- run one node of a Muster cluster"]
    lines += [".SH DESCRIPTION", ".nf", *(_escaped(line) if line else "\\&" for line in text.splitlines()), ".fi"]
    lines += [".SH EXIT STATUS"]
    for status, meaning in DAEMON_EXIT_CODES:
        lines += [".TP", f".B {status}", f"{meaning.capitalize()}."]
    lines += [".SH SEE ALSO", ".BR muster (1)"]
    return Page(f"{DAEMON}.8", "\n".join(lines) + "\n")
