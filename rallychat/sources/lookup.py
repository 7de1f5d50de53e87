"""Models by their hub id: looks at a repository and describes what is there as a model. Downloads facts only."""

from __future__ import annotations

from rallychat.catalog import Model, architectures, brought, references
from rallychat.catalog.brought import Known
from rallychat.catalog.places import folder
from rallychat.catalog.repository import CONFIG, Said, is_adapter, pickled, weights
from rallychat.catalog.types import Adapter, Checkpoint
from rallychat.errors import InvalidRequest, Unsupported
from rallychat.settings import Settings
from rallychat.sources.examining import refuse_kind, refuse_pickles, shown
from rallychat.sources.files import megabytes
from rallychat.sources.naming import is_hub_id
from rallychat.sources.repository import Repository, look_at


def look_up(repo: str, revision: str, known: Known, settings: Settings, *, base: str | None = None) -> Model:
    """The model in a repository of the hub; `base` is what its adapter is laid over. Blocks.

    Raises:
        FamilyNeeded: nothing says its prompt format.
        Unsupported: it could not be run, or not safely.
        InvalidRequest: it holds several GGUF files; the hint lists them.
        SourceError: the hub does not show it.
    """
    token = settings.hub_token.get_secret_value() if settings.hub_token else None
    there = look_at(repo, revision=revision, token=token)
    if is_adapter(there.files):
        return _adapter(there, known, settings, token, base)
    if CONFIG not in there.files or not (weights(there.files) or pickled(there.files)):
        if packed := [name for name in there.files if name.lower().endswith(".gguf")]:
            return _gguf(there, packed, settings)
        if CONFIG not in there.files:
            raise Unsupported(f"{repo} holds neither a checkpoint nor an adapter nor a GGUF file.")
    checkpoint = _checkpoint(there, known, settings)
    said = there.said
    name = repo if revision == "main" else f"{repo}@{revision}"
    return brought.describe(
        name, checkpoint, own=said, base=said, known=known, license=there.license, url=_page(repo)
    )


def _checkpoint(there: Repository, known: Known, settings: Settings) -> Checkpoint:
    """The checkpoint in a repository, if it could be run here."""
    said = there.said
    checkpoint = Checkpoint(
        repo=there.repo,
        revision=there.revision,
        architecture=said.architecture,
        parameters=there.parameters,
        size=_size(there),
        living_copy=known.living_copy(there.repo),
        gated=there.gated,
        remote_code=said.own_code and not architectures.supported(said.architecture, said.kind),
    )
    refuse_pickles(there)
    allowed = {name.casefold() for name in settings.remote_code}
    architectures.check(there.repo, said, code_allowed=there.repo.casefold() in allowed)
    return checkpoint


def _adapter(
    there: Repository, known: Known, settings: Settings, token: str | None, base: str | None
) -> Model:
    """The adapter in a repository, over the base that it names."""
    own = there.said
    refuse_kind(there.repo, own)
    name = there.repo.split("/")[1]
    adapter = Adapter(name=name, repo=there.repo, revision=there.revision, size=_size(there))
    refuse_pickles(there)
    below = base if base and is_hub_id(base) else own.base
    if not is_hub_id(below):
        raise Unsupported(
            f"The adapter {there.repo} names '{own.base}' as its base, which is no hub repository.",
            hint=f"say which it is: --ft-ckpt-url {there.repo} --base-url OWNER/REPO",
        )
    facts, said = _base(below, known, settings, token)
    laid_over = facts.model_copy(update={"adapters": (adapter,)})
    return brought.describe(
        there.repo, laid_over, own=own, base=said, known=known, license=there.license, url=_page(there.repo)
    )


def _base(repo: str, known: Known, settings: Settings, token: str | None) -> tuple[Checkpoint, Said]:
    """An adapter's base, as it lies here, or as the hub shows it; where it has left the hub, its living copy."""
    facts = brought.on_hub(repo, known)
    here = folder(facts, settings.models_dir)
    if here.is_dir():
        return facts, Said.of(here)
    there = shown(facts, token)
    found = _checkpoint(there, known, settings)
    return (facts if facts.parameters else found), there.said


def _gguf(there: Repository, files: list[str], settings: Settings) -> Model:
    """The one GGUF file of a repository; of several, a person has to choose."""
    first = [
        name for name in sorted(files) if references.is_first_part(name) and "mmproj" not in name.lower()
    ]
    if len(first) == 1:
        return references.hub_model(
            there.repo, first[0], revision=there.revision, models_dir=settings.models_dir
        )
    listed = "; ".join(f"{there.repo}:{name} ({megabytes(there.files[name].size or 0)})" for name in first)
    raise InvalidRequest(
        f"{there.repo} holds {len(first)} GGUF files.", param="model", hint=f"name one of: {listed}"
    )


def _size(there: Repository) -> int:
    return there.size(weights(there.files) or pickled(there.files))


def _page(repo: str) -> str:
    return f"https://huggingface.co/{repo}"
