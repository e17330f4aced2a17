"""The command line. Every file of this folder that does not start with an underscore is a verb, loaded when it is called."""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import os
import pkgutil
import signal
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from plait.cli import _show

if TYPE_CHECKING:
    from plait.errors import PlaitError

#: what a user's system may answer wherever a file is opened or written; anything else that escapes is a bug of ours
REFUSALS = {errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ELOOP, errno.EMFILE, errno.ENAMETOOLONG}
REFUSALS |= {errno.ENFILE, errno.ENOSPC, errno.EPERM, errno.EROFS}


class Verbs(_show.Listed):
    """Finds its commands in this folder."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_verbs())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _verbs():
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from plait.errors import nearest

        if args and self.get_command(ctx, args[0]) is None:
            guess = nearest(args[0], self.list_commands(ctx))
            ctx.fail(f"there is no verb {args[0]!r}" + (f"; did you mean {guess}?" if guess else ""))
        return super().resolve_command(ctx, args)


@cache
def _verbs() -> tuple[str, ...]:
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="plait", message="%(package)s %(version)s")
def cli() -> None:
    """Merge language models: weave the weights of several checkpoints into one.

    \b
    plait demo                     the whole story on small bundled models
    plait check recipe.yml         find every mistake before the work
    plait merge recipe.yml OUT     run the recipe
    """


def main(args: list[str] | None = None) -> Any:
    """Run the command line. Exit codes: 0 done, 2 the user can mend it, 1 a bug of ours, 130 interrupted, 143 killed."""
    from plait.errors import PlaitError

    if args is None:  # a process of our own: a polite kill cleans up like Ctrl-C
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        gc.set_threshold(20_000, 10, 10)  # what is loaded stays: it is looked through for garbage less often,
        atexit.register(gc.freeze)  # and at the end not at all
    try:
        code = cli.main(args, prog_name="plait", standalone_mode=False)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped", err=True)
        sys.exit(130)
    except Exception as error:
        told = error if isinstance(error, PlaitError) else _of_the_system(error) or _of_a_loaded_file(error)
        if told is None:
            raise
        for line in f"error: {told}".split("\n"):
            click.echo(_show.fitted(line, 10 if line.startswith("  ") else 2, stderr=True), err=True)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _of_the_system(error: Exception) -> PlaitError | None:
    """What a disk, its permissions or its names have against a file that no other message is about; None for bugs of ours."""
    from plait.errors import PlaitError, reason

    if not isinstance(error, OSError) or error.errno not in REFUSALS:
        return None
    try:
        sys.stdout.flush()
    except OSError:  # what is printed goes to a full disk: Python would try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return PlaitError(
        "the system refuses a file",
        wanted="space, permission, and names that it takes",
        found=reason(error),
        do="mend that, and run the command again",
    )


def _of_a_loaded_file(error: Exception) -> PlaitError | None:
    """What a method of the user's own raised, as its author must see it; None for bugs of ours."""
    import traceback

    from plait.errors import PlaitError
    from plait.methods import loaded

    files = {method.function.__code__.co_filename for method in loaded.values()}
    places = [place for place in traceback.extract_tb(error.__traceback__) if place.filename in files]
    if not places:
        return None
    return PlaitError(
        f"{places[-1].filename}, line {places[-1].lineno}, {places[-1].name} failed",
        wanted="a method that takes these models",
        found=f"{type(error).__name__}: {error}",
        do="mend the file; 'plait methods --check' with it tries its methods",
    )
