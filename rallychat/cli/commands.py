"""The tree of commands and their options. What a command does lives in the module of its name."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rallychat import __version__
from rallychat.cli.bench_commands import bench_app
from rallychat.cli.options import (
    AnyModel,
    DataDir,
    FamilyName,
    Forgiving,
    GenConfig,
    Json,
    ModelName,
    Offline,
    Slots,
    SummaryGenConfig,
    Threads,
    Window,
    complain,
    settings_from,
)
from rallychat.cli.running import debugging, run
from rallychat.errors import RallyChatError

if TYPE_CHECKING:
    from rallychat.settings import Settings

app = typer.Typer(
    name="rallychat",
    help="A chatbot service for open language models. Without a command: serve and open the page.",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(help="The models that can be chosen, and their weights.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(bench_app, name="bench")


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
        _serve(settings_from())


def _serve(settings: Settings) -> None:
    from rallychat.cli.serve import serve as start_serving

    run(start_serving(settings))


@app.command(cls=Forgiving)
def serve(
    model: ModelName = None,
    base_url: Annotated[
        str | None, typer.Option(help="Hub repository or folder of the checkpoint to start with.")
    ] = None,
    ft_ckpt_url: Annotated[
        str | None, typer.Option(help="Hub repository or folder of the LoRA adapter to start with.")
    ] = None,
    gen_config_path: GenConfig = None,
    gen_config_summarization_path: SummaryGenConfig = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on (7860); 0 takes a free one.")
    ] = None,
    data_dir: DataDir = None,
    api_only: Annotated[bool, typer.Option("--api-only", help="Serve the API without the web page.")] = False,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Do not open the page in the browser.")
    ] = False,
    family: FamilyName = None,
    engine: Annotated[
        str | None,
        typer.Option(help="What runs a model that has both: auto, llamacpp or transformers (auto)."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Number format of a checkpoint: auto, float32, bfloat16, float16 (auto)."),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(help="Compress a checkpoint: auto, none, int8 or int4 (auto).")
    ] = None,
    remote_code: Annotated[
        list[str] | None, typer.Option(help="A model whose own Python code may run; can be repeated.")
    ] = None,
    multi_gpu: Annotated[
        bool, typer.Option("--multi-gpu", help="Spread the model over all GPUs, in fp16 and never in int8.")
    ] = False,
    force_download_ckpt: Annotated[
        bool,
        typer.Option(
            "--force-download-ckpt",
            "--force-download_ckpt",
            help="Download the weights again, whether they are here or not.",
        ),
    ] = False,
    slots: Slots = None,
    window: Window = None,
    threads: Threads = None,
    chat_only_mode: Annotated[
        bool,
        typer.Option("--chat-only-mode", help="Show the chat alone on the page, without menus and panels."),
    ] = False,
    share: Annotated[
        bool,
        typer.Option("--share", help="Reachable from the internet through Gradio's tunnel; wants --no-auth."),
    ] = False,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Allow everyone who reaches the address, without login.")
    ] = False,
    log_level: Annotated[
        str | None, typer.Option(help="What is logged: debug, info, warning or error (warning).")
    ] = None,
    offline: Offline = False,
) -> None:
    """Serve the page and the API until Ctrl-C."""
    if model and (base_url or ft_ckpt_url):
        raise typer.BadParameter(f"'{model}' and --base-url or --ft-ckpt-url both say what to start with.")
    _serve(
        settings_from(
            model=model,
            base_url=base_url,
            ft_ckpt_url=ft_ckpt_url,
            gen_config_path=gen_config_path,
            gen_config_summarization_path=gen_config_summarization_path,
            multi_gpu=multi_gpu or None,
            force_download_ckpt=force_download_ckpt or None,
            chat_only_mode=chat_only_mode or None,
            share=share or None,
            host=host,
            port=port,
            data_dir=data_dir,
            api_only=api_only or None,
            open_browser=False if no_browser else None,
            family=family,
            engine=engine,
            dtype=dtype,
            quantize=quantize,
            remote_code=remote_code or None,
            slots=slots,
            window=window,
            threads=threads,
            no_auth=no_auth or None,
            log_level=log_level,
            offline=offline or None,
        )
    )


@app.command()
def chat(
    model: ModelName = None,
    data_dir: DataDir = None,
    system: Annotated[str | None, typer.Option(help="System prompt of the new conversation.")] = None,
    resume: Annotated[
        str | None, typer.Option("--open", help="Go on with a conversation: its id, or `last`.")
    ] = None,
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
    run(start_chat(settings, system=system, resume=resume))


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
    run(answer_lines(settings, source, output, model=model, overwrite=overwrite))


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
