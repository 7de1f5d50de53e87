"""The tree of commands and their options. What a command does lives in the module of its name."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rallychat import __version__
from rallychat.cli.bench_commands import bench_app
from rallychat.cli.options import (
    AnyModel,
    DatabaseUrl,
    DataDir,
    FamilyName,
    Forgiving,
    GenConfig,
    Json,
    ModelName,
    Offline,
    SummaryGenConfig,
    Threads,
    Window,
    complain,
    settings_from,
)
from rallychat.cli.people_commands import keys_app, users_app
from rallychat.cli.running import debugging, run
from rallychat.cli.serve_command import serve, serve_with
from rallychat.errors import RallyChatError

if TYPE_CHECKING:
    pass

app = typer.Typer(
    name="rallychat",
    help="A chatbot service for open language models. Without a command: serve and open the page.",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
Whose = Annotated[
    str | None,
    typer.Option("--user", help="Whose, by the name they log in with.", show_default=False),
]
models_app = typer.Typer(help="The models that can be chosen, and their weights.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(bench_app, name="bench")
app.add_typer(users_app, name="users")
app.add_typer(keys_app, name="keys")


def main() -> None:
    """Run the command line; errors are one sentence on stderr, tracebacks only with --debug."""
    try:
        app(prog_name="rallychat")
    except RallyChatError as exc:
        if debugging():
            raise
        complain(exc.message, exc.hint)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as exc:  # a mistake of ours: said in one sentence, in full with --debug
        if debugging():
            raise
        complain(
            f"RallyChat failed: {type(exc).__name__}: {exc}", "run `rallychat --debug ...` for the details"
        )
        sys.exit(1)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, log more.")] = False,
) -> None:
    """Serve and open the page, unless a command is given."""
    if debug:
        os.environ["RALLYCHAT_DEBUG"] = "1"
        os.environ.setdefault("RALLYCHAT_LOG_LEVEL", "debug")
    if context.invoked_subcommand is None:
        serve_with(settings_from())


app.command("serve", cls=Forgiving)(serve)


@app.command()
def chat(
    model: ModelName = None,
    data_dir: DataDir = None,
    system: Annotated[str | None, typer.Option(help="System prompt of the new conversation.")] = None,
    resume: Annotated[
        str | None, typer.Option("--open", help="Go on with a conversation: its id, or `last`.")
    ] = None,
    user: Whose = None,
    family: FamilyName = None,
    gen_config_path: GenConfig = None,
    gen_config_summarization_path: SummaryGenConfig = None,
    window: Window = None,
    threads: Threads = None,
    offline: Offline = False,
) -> None:
    """Chat in the terminal. With input piped in: answer it once, in plain text."""
    from rallychat.cli.chat import chat as start_chat

    settings = settings_from(
        model=model,
        data_dir=data_dir,
        family=family,
        gen_config_path=gen_config_path,
        gen_config_summarization_path=gen_config_summarization_path,
        window=window,
        threads=threads,
        offline=offline or None,
    )
    run(start_chat(settings, system=system, resume=resume, user=user))


@app.command(cls=Forgiving)
def batch(
    source: Annotated[str, typer.Argument(metavar="IN.jsonl", help="The lines; - reads standard input.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT.jsonl", help="The outcomes; - is standard output.")
    ] = "-",
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Answers every line, whatever model it names."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew, whatever the output holds.")
    ] = False,
    user: Whose = None,
    gen_config_path: GenConfig = None,
    slots: Annotated[
        int | None, typer.Option(min=1, max=256, help="Answers generated at the same time (by the machine).")
    ] = None,
    window: Window = None,
    threads: Threads = None,
    data_dir: DataDir = None,
    offline: Offline = False,
) -> None:
    """Answer the lines of a file, as fast as the machine can. Interrupted, the same command goes on."""
    from rallychat.cli.batch import batch as answer_lines

    settings = settings_from(
        model=model,
        gen_config_path=gen_config_path,
        slots=slots,
        window=window,
        threads=threads,
        data_dir=data_dir,
        offline=offline or None,
    )
    run(answer_lines(settings, source, output, model=model, overwrite=overwrite, user=user))


@models_app.command("list")
def models_list(
    data_dir: DataDir = None,
    everything: Annotated[bool, typer.Option("--all", help="Also models that are not in the menu.")] = False,
    as_json: Json = False,
) -> None:
    """List the models, smallest first."""
    from rallychat.cli.models import list_models

    list_models(settings_from(data_dir=data_dir), everything=everything, as_json=as_json)


@models_app.command("show")
def models_show(
    model: AnyModel,
    family: FamilyName = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show what is known of one model."""
    from rallychat.cli.models import show_model

    show_model(settings_from(data_dir=data_dir, family=family), model, as_json=as_json)


@models_app.command("download")
def models_download(
    model: AnyModel,
    family: FamilyName = None,
    force: Annotated[
        bool, typer.Option("--force", help="Fetch them again, whether they are here or not.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Fetch a model's weights; an interrupted download goes on where it stopped."""
    from rallychat.cli.models import download_model

    download_model(settings_from(data_dir=data_dir, family=family), model, force=force)


@models_app.command("remove")
def models_remove(
    model: Annotated[str, typer.Argument(help="Id or name.")],
    data_dir: DataDir = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a model's weights from this machine."""
    from rallychat.cli.models import remove_model

    remove_model(settings_from(data_dir=data_dir), model, sure=yes)


@app.command()
def render(
    model: AnyModel,
    file: Annotated[str, typer.Argument(metavar="FILE.json", help="The messages; - reads standard input.")],
    family: FamilyName = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Print the token ids, as JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Print the exact prompt the model would see, and nothing else.

    FILE.json is {"system": optional, "messages": [{"role": "user", "content": "Hello"}, ...]}.
    """
    from rallychat.cli.render import render as print_prompt

    run(print_prompt(settings_from(data_dir=data_dir), model, file, family=family, tokens=tokens))


@app.command()
def export(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The file to write; - is standard output.")
    ] = "-",
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The branches in view as Markdown, to be read.")
    ] = False,
    user: Whose = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Write all conversations but those of the trash: as JSON, with every branch, that `import` takes in again."""
    from rallychat.cli.export import export as write

    settings = settings_from(data_dir=data_dir, database_url=database_url)
    run(write(settings, file, markdown=markdown, user=user))


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An export, JSON or ZIP, as it came.")],
    user: Whose = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Take in conversations of an export of RallyChat, ChatGPT or Open WebUI. Twice does no harm."""
    from rallychat.cli.export import import_ as take_in

    run(take_in(settings_from(data_dir=data_dir, database_url=database_url), file.expanduser(), user=user))


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="The file to write.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Write everything but weights into one file, as it is at one moment; a server may go on meanwhile."""
    from rallychat.cli.backup import backup as write

    run(write(settings_from(data_dir=data_dir, database_url=database_url), file))


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="A file that `backup` wrote.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Bring everything of a backup back, into an empty data folder and database: all of it or nothing."""
    from rallychat.cli.backup import restore as bring_back

    run(bring_back(settings_from(data_dir=data_dir, database_url=database_url), file))


@app.command()
def doctor(
    data_dir: DataDir = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to look at (7860).")] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Look at what is installed, what fits this machine, and what to do about what is missing."""
    from rallychat.cli.doctor import doctor as examine

    run(examine(settings_from(data_dir=data_dir, port=port, offline=offline or None), as_json=as_json))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
