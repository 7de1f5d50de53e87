"""`rallychat serve` and its flags: every setting has one, but for the secrets that only ever are secrets.

A parameter is called as its setting is, or `no_` and the setting that it switches off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rallychat.cli.options import (
    DatabaseUrl,
    DataDir,
    FamilyName,
    GenConfig,
    ModelName,
    Offline,
    Slots,
    SummaryGenConfig,
    Threads,
    Window,
    settings_from,
)
from rallychat.cli.running import run

if TYPE_CHECKING:
    from rallychat.settings import Settings

SWITCHES_OFF: Final = {"no_browser": "open_browser", "no_titles": "titles", "no_sharing": "sharing"}
"""Flags by the setting that they switch off."""
NO_FLAG: Final = frozenset({"hub_token", "oidc_client_secret"})
"""Settings without a flag: other users of the machine see a command line. The environment or the file has them."""


def serve(
    context: typer.Context,
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
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(help="Name this server is reached by behind a reverse proxy; can be repeated."),
    ] = None,
    trusted_proxies: Annotated[
        list[str] | None,
        typer.Option(help="Address or network of a reverse proxy that is believed; can be repeated."),
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    database_connections: Annotated[
        int | None, typer.Option(min=2, max=1000, help="Connections to a PostgreSQL database (10).")
    ] = None,
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
    max_loaded: Annotated[
        int | None, typer.Option(min=1, help="Models kept loaded; the longest unused one goes first (1).")
    ] = None,
    kv_offload_mb: Annotated[
        int | None,
        typer.Option(min=0, help="Room per model for caches that had to leave their slots, in MB (2048)."),
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(min=0, help="Requests that may wait before new ones are refused (256).")
    ] = None,
    load_timeout: Annotated[
        float | None, typer.Option(help="Seconds a model may take to load (600).")
    ] = None,
    stall_timeout: Annotated[
        float | None, typer.Option(help="Seconds an engine may be silent before it counts as hung (120).")
    ] = None,
    chat_only_mode: Annotated[
        bool,
        typer.Option("--chat-only-mode", help="Show the chat alone on the page, without menus and panels."),
    ] = False,
    share: Annotated[
        bool,
        typer.Option("--share", help="Reachable from the internet through Gradio's tunnel."),
    ] = False,
    auth: Annotated[
        str | None, typer.Option(help="Who has to log in: auto (by the address) or required (auto).")
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Allow everyone who reaches the address, without login.")
    ] = False,
    oidc_issuer: Annotated[
        str | None, typer.Option(help="OpenID provider people log in with: its address.")
    ] = None,
    oidc_client_id: Annotated[
        str | None, typer.Option(help="What the provider knows this server by.")
    ] = None,
    oidc_name: Annotated[
        str | None, typer.Option(help="What the page calls the provider (single sign-on).")
    ] = None,
    oidc_domains: Annotated[
        list[str] | None,
        typer.Option(help="Domain of verified addresses that may log in; can be repeated (all)."),
    ] = None,
    oidc_role: Annotated[
        str | None, typer.Option(help="Role of who logs in so for the first time: admin or member (member).")
    ] = None,
    oidc_admin: Annotated[
        str | None, typer.Option(help="CLAIM=VALUE that makes an admin of whom the provider says it.")
    ] = None,
    no_sharing: Annotated[
        bool, typer.Option("--no-sharing", help="Nobody may share a conversation as a link.")
    ] = False,
    log_level: Annotated[
        str | None, typer.Option(help="What is logged: debug, info, warning or error (warning).")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="How it is logged: text or json (text).")] = None,
    shutdown_grace: Annotated[
        float | None, typer.Option(min=0, help="Seconds running answers may go on after Ctrl-C (8).")
    ] = None,
    user_concurrent: Annotated[
        int | None, typer.Option(min=1, help="Answers at the same time for each account (no limit).")
    ] = None,
    user_requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Answers each account may begin within a minute (no limit).")
    ] = None,
    user_tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Tokens each account may use within a minute (no limit).")
    ] = None,
    user_stored_bytes: Annotated[
        int | None, typer.Option(min=0, help="Bytes of files each account may keep (no limit).")
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="How long conversations are kept short, by name (as the model or its family says)."
        ),
    ] = None,
    latency_factor: Annotated[
        float | None,
        typer.Option(
            min=0, help="How much later an answer may begin before older turns are compacted (1.2)."
        ),
    ] = None,
    retrieval: Annotated[
        str | None,
        typer.Option(help="How older turns are found: auto, words, or fused with their meaning (auto)."),
    ] = None,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="Quote from the person's other conversations, too.")
    ] = False,
    no_titles: Annotated[
        bool, typer.Option("--no-titles", help="Do not let the model name new conversations.")
    ] = False,
    summary_prompt: Annotated[
        str | None, typer.Option(help="What a model is asked for a summary of older turns (our own words).")
    ] = None,
    trash_days: Annotated[
        float | None, typer.Option(min=0, help="Days a deleted conversation can be restored (30).")
    ] = None,
    response_days: Annotated[
        float | None,
        typer.Option(min=1, help="Days a chain of responses that is in no conversation is kept (for ever)."),
    ] = None,
    max_body_bytes: Annotated[
        int | None, typer.Option(min=1024, help="Largest request body the API accepts (8388608).")
    ] = None,
    max_file_bytes: Annotated[
        int | None, typer.Option(min=1024, help="Largest upload the API accepts (536870912).")
    ] = None,
    max_import_bytes: Annotated[
        int | None,
        typer.Option(min=1024, help="Largest file of conversations that may be imported (536870912)."),
    ] = None,
    max_batch_lines: Annotated[
        int | None, typer.Option(min=1, help="Lines a batch may have (50000).")
    ] = None,
    offline: Offline = False,
) -> None:
    """Serve the page and the API until Ctrl-C."""
    if model and (base_url or ft_ckpt_url):
        raise typer.BadParameter(f"'{model}' and --base-url or --ft-ckpt-url both say what to start with.")
    serve_with(settings_from(**dict(given(context.params))))


def serve_with(settings: Settings) -> None:
    """Serve these settings until Ctrl-C."""
    from rallychat.cli.serve import serve as start_serving

    run(start_serving(settings))


def given(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings by name, of the flags that were given: a switch that was not says nothing."""
    for name, value in params.items():
        if value is False or value in ([], ()):
            continue
        if name in SWITCHES_OFF:
            yield SWITCHES_OFF[name], False
        else:
            yield name, value
