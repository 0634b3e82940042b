"""The `hashstream` command: parse, call the library, print."""

from __future__ import annotations

import gc
import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from hashstream import __version__
from hashstream.cli import annotate_commands, commands, downstream_commands, encode_commands, search_commands
from hashstream.cli.config import load_config, load_defaults, merge
from hashstream.cli.context import Session
from hashstream.cli.interrupts import interrupts_that_count
from hashstream.cli.options import CONFIGURED

EXIT_INTERRUPTED = 130


class HashStreamGroup(click.Group):
    """A group whose configuration is read before its own options, so that YAML can set those too."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        path = _config_argument(args, set(self.commands)) or os.environ.get("HASHSTREAM_CONFIG")
        configured = load_config(Path(path), self) if path else {}
        extra.setdefault("default_map", merge(load_defaults(), configured))
        context = super().make_context(info_name, args, parent, **extra)
        context.meta[CONFIGURED] = configured
        return context


def _config_argument(args: list[str], verbs: set[str]) -> str | None:
    """The value of --config among the global options, which stand before the verb."""
    for i, arg in enumerate(args):
        if arg in verbs:
            return None
        if arg == "--config" and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith("--config="):
            return arg.partition("=")[2]
    return None


@click.group(cls=HashStreamGroup, context_settings={"auto_envvar_prefix": "HASHSTREAM", "max_content_width": 110})
@click.option("--config", metavar="FILE.yaml", help="Options by command, as YAML, called as here, and global ones.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), show_default=True, help="Seed of everything random.")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an unexpected error.")
@click.option("--quiet", is_flag=True, help="No notes and no progress bar.")
@click.option("--json", is_flag=True, help="Print results as JSON; of fit, encode and finalize not only the path.")
@click.version_option(__version__, prog_name="hashstream")
@click.pass_context
def cli(ctx: click.Context, config: str | None, seed: int, verbose: bool, quiet: bool, json: bool) -> None:
    """Stream single-cell atlases of any size into hash codes and bucket tokens; cluster and annotate the tokens.

    The options here stand before the command. Each option of a command may also be set in the environment
    (`cluster --n-clusters` by HASHSTREAM_CLUSTER_N_CLUSTERS, `--seed` by HASHSTREAM_SEED), or in a YAML file
    (`cluster: {n-clusters: 8}`). The command line goes before the environment, that before the file, and that before
    the defaults.
    """
    del config  # Read before the context was made.
    _check_environment(ctx)
    session = ctx.ensure_object(Session)
    session.seed, session.verbose, session.quiet, session.json, session.argv = seed, verbose, quiet, json, sys.argv


def _check_environment(ctx: click.Context) -> None:
    """Raise UsageError for a variable of the command that sets none of its options."""
    command = cli.commands.get(str(ctx.invoked_subcommand))
    if command is None or "--help" in sys.argv:
        return
    prefix = f"HASHSTREAM_{str(command.name).upper().replace('-', '_')}_"
    known = [f"{prefix}{str(parameter.name).upper()}" for parameter in command.params]
    unknown = sorted(name for name in os.environ if name.startswith(prefix) and name not in known)
    if unknown:
        near = get_close_matches(unknown[0], known, n=1, cutoff=0.5)
        raise click.UsageError(
            f"the environment sets {unknown[0]}, but `hashstream {command.name}` has no such option"
            + (f"; is it {near[0]}?" if near else ".")
        )


for module in (commands, encode_commands, annotate_commands, downstream_commands, search_commands):
    for command in module.ALL:
        cli.add_command(command)


def main(args: list[str] | None = None) -> None:
    """Entry point: run the command line and exit with 0, 1 failed, 2 usage, 3 partial, or 130 interrupted."""
    # Imports make hundreds of thousands of objects that stay: looking through them every 700 takes half a second.
    gc.set_threshold(50_000, 20, 50)
    for name in ("stdout", "stderr"):  # whoever has closed one does not want to read it
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    with interrupts_that_count():
        code = run(sys.argv[1:] if args is None else args)
    # Before it ends, Python looks for cycles in all that was imported: up to half a second, for nothing.
    gc.freeze()
    sys.exit(code)


def run(args: list[str]) -> int:
    """Run the command line and give the exit code; an error is one message on stderr."""
    from hashstream.errors import HashStreamError
    from hashstream.runtime.memory import return_freed_memory

    return_freed_memory()
    # Else a library of scikit-learn runs commands to count the cores.
    os.environ.setdefault("LOKY_MAX_CPU_COUNT", str(os.cpu_count() or 1))
    session = Session()
    try:
        result = cli.main(args=args, prog_name="hashstream", standalone_mode=False, obj=session)
    except HashStreamError as error:
        click.echo(f"hashstream: {error}", err=True)
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.NoSuchOption as error:
        _with_hint(error).show()
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("hashstream: interrupted.", err=True)
        return EXIT_INTERRUPTED
    except Exception as error:
        if session.verbose:
            raise
        return _failed(error)
    return result if isinstance(result, int) else 0


def _failed(error: Exception) -> int:
    """Say what went wrong beyond what the library has words of its own for."""
    from hashstream.runtime.budget import is_disk_full

    if is_disk_full(error):
        click.echo(
            "hashstream: no space left on the disk, or a quota or limit of file sizes is reached. Results that were "
            "there are as they were: free some space and run the command again.",
            err=True,
        )
    elif isinstance(error, OSError):
        click.echo(f"hashstream: {error.strerror or error}: {error.filename or 'input or output'}", err=True)
    elif isinstance(error, ImportError) and "failed to map segment" in str(error):
        click.echo(
            f"hashstream: {error}: there is no room for a library; the limit of address space (ulimit -v) is too low.",
            err=True,
        )
    elif isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        click.echo(
            "hashstream: no thread can be started: a limit of processes or of address space (ulimit -u, -v) is too "
            "low. Raise it, or run with fewer --threads.",
            err=True,
        )
    else:
        click.echo(
            f"hashstream: unexpected {type(error).__name__}: {error}. This is a defect of HashStream: please report "
            "it with the output of the same command with -v.",
            err=True,
        )
    return 1


def _with_hint(error: click.NoSuchOption) -> click.ClickException:
    """The error, with a word on where the option belongs if it is a global one that stands after the verb."""
    verb = error.ctx.info_name if error.ctx is not None and error.ctx.parent is not None else None
    name = error.option_name
    if verb is None or not any(name in parameter.opts for parameter in cli.params):
        return error
    return click.UsageError(
        f"{error.message} Global options (--json, --quiet, --seed, --config, -v) stand before the verb: "
        f"hashstream {name} ... {verb} ...",
        error.ctx,
    )
