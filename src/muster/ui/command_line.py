"""The command `muster`: its commands, each imported only when it is used, so that a query starts quickly (SPEC 8.1)."""

import importlib
import os
import sys
from typing import Any

import click

from muster import __version__
from muster.client.errors import ClientError
from muster.setup.harmless import clean_standard_streams
from muster.ui.options import EXIT_INTERRUPTED, Settings, connection_options, show_error

_COMMANDS = {
    "init": "muster.ui.commands.store:init",
    "status": "muster.ui.pages.screen:status",
    "services": "muster.ui.commands.services:services",
    "why": "muster.ui.commands.why:why",
    "transitions": "muster.ui.pages.screen:transitions",
    "links": "muster.ui.commands.links:links",
    "history": "muster.ui.commands.history:history",
    "timeline": "muster.ui.commands.timeline:timeline",
    "apply": "muster.ui.commands.services:apply",
    "plan": "muster.ui.commands.planning:plan",
    "maintenance": "muster.ui.commands.maintenance:maintenance",
    "config": "muster.ui.commands.configuration:config",
    "audit": "muster.ui.commands.configuration:audit",
    "upgrade": "muster.ui.commands.upgrade:upgrade",
    "node": "muster.ui.commands.nodes:node",
    "fence": "muster.ui.commands.fencing:fence",
    "enrol": "muster.ui.commands.enrolment:enrol",
    "authority": "muster.ui.commands.authority:authority",
    "service": "muster.ui.commands.services:service",
    "event": "muster.ui.commands.events:event",
    "watcher": "muster.ui.commands.events:watcher",
    "lock": "muster.ui.commands.locks:lock",
    "subsystem": "muster.ui.commands.subsystem:subsystem",
    "store": "muster.ui.commands.store:store",
    "profile": "muster.ui.commands.profile:profile",
    "debug": "muster.ui.commands.debugging:debug",
    "dev": "muster.ui.commands.development:dev",
    "rehearse": "muster.ui.commands.rehearsal:rehearse",
    "install": "muster.ui.commands.installing:install",
    "uninstall": "muster.ui.commands.installing:uninstall",
    "man": "muster.ui.commands.installing:man",
    "sim": "muster.ui.commands.simulation:sim",
    "demo": "muster.ui.commands.demonstration:demo",
    "completion": "muster.ui.command_line:completion",
}


class ReaderGone(Exception):
    """Who read our output has gone, as `| head` does: nothing is wrong, and nothing more can be said."""


class LateGroup(click.Group):
    """A group whose commands are named here and imported when one is used."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As every group; click itself would make a broken pipe a failure, here that of --help."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except BrokenPipeError as error:
            raise ReaderGone from error

    def invoke(self, ctx: click.Context) -> object:
        """The same, of commands."""
        try:
            result: object = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise ReaderGone from error
        return result

    def list_commands(self, _context: click.Context) -> list[str]:
        """In the order in which a newcomer meets them."""
        return list(_COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """The command, or None where there is no such one."""
        if name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[name].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{_COMMANDS[name]} is no command")
        return command


@click.command(cls=LateGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
@connection_options
@click.pass_context
def muster(context: click.Context) -> None:
    """Machines that share storage, run as one: who is a member, and what runs where.

    \b
    Examples:
      muster demo                                        see it work, in a minute
      muster dev up --nodes 3 --dir /tmp/try             a cluster of real daemons on this machine
      muster apply services.toml --dir /tmp/try --dry-run
      muster status --dir /tmp/try --watch
      muster service transfer web n2 --dir /tmp/try

    \b
    Exit codes:
      0  done
      1  refused, or what was asked for did not come about
      2  the command line, or a file named on it, is wrong
      3  no node answers
      130  interrupted

    Every error says what is wrong, where, and what to do next. With --json, answers carry `format`, the version of
    their form.
    """
    context.ensure_object(Settings)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    Examples:
      muster completion bash > ~/.local/share/bash-completion/completions/muster
      muster completion zsh > "${fpath[1]}/_muster"
      muster completion fish > ~/.config/fish/completions/muster.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this release of click has no completion for {shell}")
    click.echo(kind(muster, {}, "muster", "_MUSTER_COMPLETE").source())


def _context_of(words: list[str]) -> click.Context:
    """The context of the command that a command line names, as far as it names one."""
    context = click.Context(muster, info_name="muster")
    for word in words:
        if isinstance(context.command, click.Group) and (found := context.command.get_command(context, word)):
            context = click.Context(found, info_name=word, parent=context)
    return context


def explained(error: click.ClickException, words: list[str]) -> ClientError:
    """What click found wrong with the command line, as every other error: what, where, and what to do next."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    what = error.format_message().rstrip(".")
    if context is None:  # the parser of options does not say whose they are
        context = _context_of(words)
    usage = " ".join(context.get_usage().split())
    return ClientError(what, context.command_path, f"{usage}; see `{context.command_path} --help`")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command `muster`; `arguments` are those of the process unless given."""
    _open_what_is_closed()
    clean_standard_streams()
    try:
        # see https://no-color.org; None lets click look whether the output is a terminal
        colour = False if os.environ.get("NO_COLOR") else None
        muster(arguments, prog_name="muster", standalone_mode=False, color=colour)
    except click.exceptions.Abort:
        click.echo("muster: interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        show_error(explained(error, sys.argv[1:] if arguments is None else arguments))
        sys.exit(error.exit_code)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except (ReaderGone, BrokenPipeError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)  # for what is still to be flushed when the interpreter ends
        sys.exit(0)


def _open_what_is_closed() -> None:
    """Give a standard stream that was closed, as by `>&-`, to nobody; a file or socket would get its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for as long as the process lasts


if __name__ == "__main__":
    main()
