"""What can be set, and where it comes from: defaults < rallychat.toml < RALLYCHAT_* < command line."""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from rallychat.errors import SettingsError

CONFIG_NAME = "rallychat.toml"


def default_data_dir() -> Path:
    """The one folder everything lives under, by the platform's custom."""
    return Path(platformdirs.user_data_dir("rallychat", appauthor=False))


def config_file() -> Path | None:
    """The configuration file in force: `RALLYCHAT_CONFIG`, else ./rallychat.toml, else the user's own."""
    named = os.environ.get("RALLYCHAT_CONFIG")
    if named:
        if not Path(named).is_file():
            raise SettingsError(f"RALLYCHAT_CONFIG names '{named}', which is not a file.")
        return Path(named)
    candidates = (
        Path(CONFIG_NAME),
        Path(platformdirs.user_config_dir("rallychat", appauthor=False)) / CONFIG_NAME,
    )
    return next((path for path in candidates if path.is_file()), None)


def is_loopback(host: str) -> bool:
    """The name or address leads to this machine only. An empty host means every address, so it does not."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _network(given: str) -> IPv4Network | IPv6Network:
    network = ip_network(given, strict=False)
    if network.prefixlen == 0:
        raise ValueError(f"'{given}' is everybody: anyone could say to be anyone")
    return network


Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]
"""An address or a network, but not all there are."""


class Settings(BaseSettings):
    """Everything that can be set. Frozen; secrets print as stars."""

    model_config = SettingsConfigDict(
        env_prefix="RALLYCHAT_", frozen=True, extra="forbid", env_ignore_empty=True, protected_namespaces=()
    )

    _typed: frozenset[str] = PrivateAttr(frozenset())

    data_dir: Path = Field(
        default_factory=default_data_dir, description="Folder of weights, database and logs."
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="PostgreSQL database, as postgresql://USER:PASSWORD@HOST/NAME; SQLite in data_dir if not given.",
    )
    database_connections: int = Field(
        10, ge=2, le=1000, description="Connections this process keeps to a PostgreSQL database."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(7860, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    model: str = Field("smollm2-135m-instruct", description="Model used where none is asked for.")
    base_url: str | None = Field(
        default=None, description="Hub repository or folder of the checkpoint to start with."
    )
    ft_ckpt_url: str | None = Field(
        default=None, description="Hub repository or folder of the LoRA adapter to start with."
    )
    gen_config_path: Path | None = Field(
        default=None, description="YAML file of the generation config for answers."
    )
    gen_config_summarization_path: Path | None = Field(
        default=None, description="YAML file of the generation config for summaries of the conversation."
    )
    multi_gpu: bool = Field(
        default=False, description="Spread the model over all GPUs, in fp16 and never in int8."
    )
    force_download_ckpt: bool = Field(
        default=False,
        description="Download the weights of the first model again, whether they are here or not.",
    )
    chat_only_mode: bool = Field(
        default=False, description="Show the chat alone on the page, without menus and panels."
    )
    share: bool = Field(
        default=False, description="Make the page reachable from the internet through Gradio's tunnel."
    )
    api_only: bool = Field(default=False, description="Serve the API without the web page.")
    open_browser: bool = Field(default=True, description="Open the page in the browser when ready.")
    auth: Literal["auto", "required"] = Field(
        "auto",
        description="Who has to log in: auto, where others can reach the server or there are accounts; required, "
        "everybody.",
    )
    no_auth: bool = Field(default=False, description="Serve beyond this machine without login.")
    oidc_issuer: str | None = Field(
        default=None, description="OpenID provider people log in with: its address, as it calls itself."
    )
    oidc_client_id: str = Field("", description="What the provider knows this server by.")
    oidc_client_secret: SecretStr | None = Field(
        default=None, description="What this server proves that with; none for a public client."
    )
    oidc_name: str = Field("single sign-on", description="What the page calls the provider.")
    oidc_domains: tuple[str, ...] = Field(
        (),
        description="Domains of verified addresses that may log in; all the provider lets in if not given.",
    )
    oidc_role: Literal["admin", "member"] = Field(
        "member", description="Role of who logs in through the provider for the first time."
    )
    oidc_admin: str | None = Field(
        default=None,
        description="CLAIM=VALUE that makes an admin of whom it is said; everybody else is a member then.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("warning", description="What is logged.")
    log_format: Literal["text", "json"] = Field(
        "text", description="How it is logged: lines of text or of JSON."
    )
    shutdown_grace: float = Field(
        8.0, ge=0, description="Seconds running answers may go on after the server was told to stop."
    )

    slots: int = Field(4, ge=1, le=256, description="Answers generated at the same time, per model.")
    family: str | None = Field(
        default=None,
        description="Prompt format of the model to start with; what it says itself if not given.",
    )
    engine: Literal["auto", "llamacpp", "transformers"] = Field(
        "auto", description="What runs a model that has both a GGUF file and a checkpoint; auto: by the GPU."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of a checkpoint's weights; auto: by the device."
    )
    quantize: Literal["auto", "none", "int8", "int4"] = Field(
        "auto", description="Compress a checkpoint's weights; auto: only where memory asks for it."
    )
    remote_code: tuple[str, ...] = Field(
        (), description="Models whose own Python code may run, by id or hub id; none unless named."
    )
    window: int | None = Field(
        default=None,
        ge=256,
        description="Context window per slot in tokens; the model's own, at most 8192, if not given.",
    )
    kv_offload_mb: int = Field(
        2048,
        ge=0,
        description="Room per model for caches of conversations that had to leave their slots, in MB of the folder "
        "for temporary files; 0 reads their prompts anew.",
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads per engine; the physical cores if not given."
    )
    max_loaded: int = Field(
        1, ge=1, description="Models kept loaded; the longest unused one is unloaded first."
    )
    max_queue: int = Field(
        256, ge=0, description="Requests that may wait for a slot before new ones are refused."
    )
    user_concurrent: int | None = Field(
        default=None, ge=1, description="Answers at the same time for each account."
    )
    user_requests_per_minute: int | None = Field(
        default=None, ge=1, description="Answers each account may begin within a minute."
    )
    user_tokens_per_minute: int | None = Field(
        default=None, ge=1, description="Tokens of prompts and answers each account may use within a minute."
    )
    user_stored_bytes: int | None = Field(
        default=None, ge=0, description="Bytes of files each account may keep."
    )
    load_timeout: float = Field(600.0, gt=0, description="Seconds a model may take to load.")
    stall_timeout: float = Field(
        120.0, gt=0, description="Seconds an engine may be silent before it counts as hung."
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Names this server may be reached by (behind a reverse proxy), beside the local ones; where the "
        "host is not this machine and none is given, by any.",
    )
    trusted_proxies: tuple[Network, ...] = Field(
        (ip_network("127.0.0.1"), ip_network("::1")),
        description="Addresses or networks of reverse proxies: their X-Forwarded-For and -Proto are believed.",
    )
    max_body_bytes: int = Field(8 * 1024 * 1024, ge=1024, description="Largest request body the API accepts.")
    max_file_bytes: int = Field(512 * 1024 * 1024, ge=1024, description="Largest upload the API accepts.")
    max_batch_lines: int = Field(50_000, ge=1, description="Lines a batch may have.")

    max_import_bytes: int = Field(
        512 * 1024 * 1024, ge=1024, description="Largest file of conversations that may be imported."
    )
    sharing: bool = Field(
        default=True, description="Let people share a conversation as a link that asks nobody to log in."
    )
    trash_days: float = Field(
        30.0, ge=0, description="Days a deleted conversation can be restored before it is gone for good."
    )
    response_days: float | None = Field(
        default=None,
        ge=1,
        description="Days after which a chain of responses that is in no conversation, and that nobody went on with, "
        "is gone for good; never if not given.",
    )

    hub_token: SecretStr | None = Field(
        default=None, description="Hugging Face token; HF_TOKEN is used if not given."
    )
    strategy: str | None = Field(
        default=None,
        description="How long conversations are kept short (full, last_n, summary, ledger, facts, hybrid); "
        "as the model or its family says if not given, else hybrid.",
    )
    latency_factor: float = Field(
        1.2,
        ge=0,
        description="How much later than in a short conversation an answer may begin, measured on this machine, "
        "before older turns are compacted; 0 waits for the window to fill.",
    )
    retrieval: Literal["auto", "words", "fused"] = Field(
        "auto",
        description="How older turns that fit a question are found: by their words, or fused with their meaning "
        "(needs the extra embed); auto: by meaning too where that is installed.",
    )
    elsewhere: bool = Field(
        default=False, description="Quote what fits a question from the person's other conversations, too."
    )
    titles: bool = Field(default=True, description="Let the model name new conversations in idle time.")
    summary_prompt: str = Field(
        "", description="What a model is asked for a summary of older turns; our own words if empty."
    )
    offline: bool = Field(default=False, description="Never ask the network; use what is on disk.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Highest first: what the caller gives, the environment, the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=config_file())

    @classmethod
    def load(cls, **given: Any) -> Settings:
        """Settings from every source; `given` (None = not given) wins.

        Raises:
            SettingsError: a value is wrong or a name unknown; the message names it.
        """
        typed = {name: value for name, value in given.items() if value is not None}
        try:
            settings = cls(**typed)
            settings._typed = frozenset(typed)
            return settings
        except ValidationError as exc:
            first = exc.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise SettingsError(f"Setting '{name}': {first['msg']}.") from exc
        except ValueError as exc:  # the TOML itself is broken
            raise SettingsError(f"{config_file()} cannot be read: {exc}.") from exc

    @property
    def typed(self) -> frozenset[str]:
        """Names of what the caller of `load` gave: flags of this very start, which go before what was kept."""
        return self._typed

    @property
    def beyond_loopback(self) -> bool:
        """Other machines can reach the server."""
        return self.share or not is_loopback(self.host)

    @property
    def others_can_reach(self) -> bool:
        """Somebody else than who sits at this machine may ask: it listens beyond it, or stands behind a proxy."""
        return self.beyond_loopback or bool(self.allowed_hosts)

    def is_proxy(self, address: str) -> bool:
        """The address is a reverse proxy's, which says nothing of who sits behind it."""
        try:
            found = ip_address(address)
        except ValueError:
            return False
        found = (found.ipv4_mapped if isinstance(found, IPv6Address) else None) or found
        known = any(found in network for network in self.trusted_proxies)
        return known and (bool(self.allowed_hosts) or not found.is_loopback)

    @property
    def models_dir(self) -> Path:
        """Where weights are kept."""
        return self.data_dir / "models"

    @property
    def catalog_dir(self) -> Path:
        """The user's own families/ and models/, laid over the shipped ones."""
        return self.data_dir / "catalog"

    @property
    def database(self) -> Path:
        """The SQLite file of conversations."""
        return self.data_dir / "rallychat.db"
