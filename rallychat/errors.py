"""The one error tree. Knows nothing of HTTP; `rallychat.api.errors` maps each class to a status.

RallyChatError
├── InvalidRequest          the caller's input cannot be used; names the parameter
│   ├── ContextOverflow     the prompt does not fit the model's window
│   ├── FamilyNeeded        a model does not say its prompt format; carries those there are
│   └── TemplateError       the chat template cannot render these messages
├── NotFound                no such model, conversation, message or run
├── Conflict                the thing exists but is not in a state that allows this
│   ├── NotHere             a model's weights must be downloaded first
│   ├── KeyReused           the idempotency key belongs to another request
│   └── KeyInUse            another process is answering the request of this idempotency key
├── Forbidden               whoever asks may not do this
│   └── LoginFailed         name and password do not belong together
├── StorageFull             a person keeps as many bytes as they may
├── Busy                    the queue is full; carries the seconds to wait
│   ├── Full                the queue is full of other people's requests
│   ├── Late                its turn does not come within the time a request gave itself
│   ├── Limited             this user's own limit is reached
│   ├── Stopping            the server is being stopped and begins nothing new
│   └── TooManyTries        somebody guesses passwords
├── SettingsError           a setting, catalog or model file is wrong; names file and key
├── SourceError             weights could not be fetched
│   ├── NoNetwork           the source cannot be reached
│   ├── Gated               the source wants a token or an accepted licence
│   ├── SourceMissing       the repository, file or distribution does not exist
│   ├── ChecksumMismatch    what arrived is not what was promised
│   ├── DiskFull            not enough room for the weights
│   ├── Unsupported         what is there cannot be run here, or not safely
│   └── SourceCancelled     a person called the download off
├── StoreError              the conversation database cannot be used
│   └── StoreUnavailable    the database server cannot be reached at this moment
└── EngineError             an engine failed
    ├── EngineUnavailable   the engine could not be started, or died too often
    ├── EngineInterrupted   the engine died or hung during this answer
    └── EngineRefused       the engine rejected the request
"""

from __future__ import annotations


class RallyChatError(Exception):
    """Base of all errors a caller may see.

    Args:
        message: one sentence naming the thing and the limit.
        hint: the next step for the person reading it, or empty.
    """

    code = "internal_error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    @property
    def sentence(self) -> str:
        """As a page says it: the hint as a sentence of its own."""
        return f"{self.message} {self.hint[0].upper()}{self.hint[1:]}." if self.hint else self.message


class InvalidRequest(RallyChatError):
    """The caller's input cannot be used; `param` names the field, or is None."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.param = param


class ContextOverflow(InvalidRequest):
    """The prompt needs `needed` tokens but the window holds `window`."""

    code = "context_length_exceeded"

    def __init__(self, *, needed: int, window: int, hint: str = "") -> None:
        over = needed - window
        super().__init__(
            f"The prompt and its answer need {needed} tokens; the model's window is {window}: {over} too many.",
            param="messages",
            hint=hint or "shorten the conversation, lower max_tokens, or pick a model with a longer window",
        )
        self.needed = needed
        self.window = window


class FamilyNeeded(InvalidRequest):
    """The model does not say how it wants to be asked; a person has to choose one of `families`."""

    code = "family_needed"

    def __init__(self, model: str, families: tuple[str, ...]) -> None:
        super().__init__(
            f"{model} does not say which prompt format it was trained with.",
            param="family",
            hint=f"its model card says it; name one with --family: {', '.join(families)} "
            "(rallychat render shows what each makes of a conversation)",
        )
        self.model = model
        self.families = families


class TemplateError(InvalidRequest):
    """The chat template refused or failed on these messages."""

    code = "template_error"


class NotFound(RallyChatError):
    """There is no `kind` called `name`; none such, where it has no name that could be said."""

    code = "not_found"

    def __init__(self, kind: str, name: str, *, hint: str = "") -> None:
        super().__init__(f"There is no {kind} '{name}'." if name else f"There is no such {kind}.", hint=hint)
        self.kind = kind
        self.name = name


class Conflict(RallyChatError):
    """The thing exists, but its state does not allow this."""

    code = "conflict"


class NotHere(Conflict):
    """The model's weights are not on this machine, and asking for it does not fetch them."""


class KeyReused(Conflict):
    """The idempotency key was sent with another request before."""

    code = "idempotency_key_reused"


class KeyInUse(Conflict):
    """Another process is answering the request of this idempotency key."""

    code = "idempotency_key_in_use"


class StorageFull(RallyChatError):
    """What this person keeps would be more than they may."""

    code = "storage_full"


class Busy(RallyChatError):
    """The queue is full; try again after `retry_after` seconds."""

    code = "queue_full"

    def __init__(self, message: str, *, retry_after: float, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class Full(Busy):
    """The queue is full of other people's requests."""

    code = "service_full"


class Late(Busy):
    """The turn of a request that waits did not come, or cannot come, within the time it gave itself."""

    code = "queue_timeout"


class Limited(Busy):
    """A limit that an admin has set for this user is reached."""

    code = "rate_limit_exceeded"


class Stopping(Busy):
    """The server is being stopped: it ends what it has begun, and begins nothing new."""

    code = "stopping"

    def __init__(self) -> None:
        super().__init__("The server is stopping.", retry_after=5, hint="ask again in a moment")


class TooManyTries(Busy):
    """Too many failed logins; more are looked at after `retry_after` seconds."""

    code = "too_many_tries"


class Forbidden(RallyChatError):
    """Whoever asks may not do this."""

    code = "forbidden"


class LoginFailed(Forbidden):
    """Name and password do not belong together, or nobody may log in with them."""

    code = "login_failed"


class SettingsError(RallyChatError):
    """A setting, catalog file or model description is wrong; the message names file and key."""

    code = "settings_error"


class SourceError(RallyChatError):
    """Weights could not be fetched."""

    code = "download_failed"


class NoNetwork(SourceError):
    """The source cannot be reached."""

    code = "no_network"


class Gated(SourceError):
    """The source wants a token or an accepted licence."""

    code = "gated_model"


class SourceMissing(SourceError):
    """The repository, file or distribution does not exist."""

    code = "source_missing"


class ChecksumMismatch(SourceError):
    """What arrived is not what was promised."""

    code = "checksum_mismatch"


class DiskFull(SourceError):
    """There is not enough room for the weights."""

    code = "disk_full"


class Unsupported(SourceError):
    """What is there cannot be run here: an unknown architecture, pickled weights, code of its own."""

    code = "unsupported_model"


class SourceCancelled(SourceError):
    """A person called the download off."""

    code = "download_cancelled"


class StoreError(RallyChatError):
    """The conversation database cannot be used."""

    code = "store_error"


class StoreUnavailable(StoreError):
    """The database server cannot be reached at this moment; it may be back in a few seconds."""

    code = "store_unavailable"


class EngineError(RallyChatError):
    """An engine failed."""

    code = "engine_error"


class EngineUnavailable(EngineError):
    """The engine could not be started, or died too often."""

    code = "engine_unavailable"


class EngineInterrupted(EngineError):
    """The engine died during this answer, or was silent for too long (`hung`); what had arrived is kept."""

    code = "engine_interrupted"

    def __init__(self, message: str, *, hung: bool = False, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.hung = hung


class EngineRefused(EngineError):
    """The engine rejected the request."""

    code = "engine_refused"
