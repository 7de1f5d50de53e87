"""Login with an OpenID provider: authorization code with PKCE, state and nonce. Knows Authlib; never sees a cookie."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httpx
import httpx2

from rallychat.errors import LoginFailed, SettingsError
from rallychat.settings import Settings, is_loopback

if TYPE_CHECKING:
    from authlib.integrations.httpx_client import AsyncOAuth2Client
    from joserfc.jwk import KeySet

ALGORITHMS: Final = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""How an ID token may be signed: with the provider's private key, never with something that we know too."""
LEEWAY: Final = 60
"""Seconds that clocks may differ."""
FRESH: Final = 3600.0
"""Seconds after which the provider's description is asked for again."""
_TIMEOUT: Final = 15.0
_UNREACHED: Final = (httpx.HTTPError, httpx2.HTTPError)
"""Authlib takes the newer one where it is installed."""
_SCOPE: Final = "openid email profile"


@dataclass(frozen=True, slots=True)
class Flow:
    """What a browser is sent away with, and has to come back with."""

    state: str
    nonce: str
    verifier: str


@dataclass(frozen=True, slots=True)
class Vouched:
    """Whom a provider vouches for. `email` only if the provider has verified it."""

    subject: str
    name: str
    email: str | None
    admin: bool


class Provider:
    """One OpenID provider, described by the settings.

    Raises:
        SettingsError: a setting is missing or wrong, or Authlib is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        issuer = settings.oidc_issuer or ""
        address = urlsplit(issuer)
        if address.scheme != "https" and not (
            address.scheme == "http" and is_loopback(address.hostname or "")
        ):
            raise SettingsError(
                "'oidc_issuer' must begin with https://.", hint="a login over http can be read"
            )
        if not settings.oidc_client_id:
            raise SettingsError("'oidc_client_id' is missing.", hint="the provider gives it")
        claim, sign, value = (settings.oidc_admin or "").partition("=")
        if settings.oidc_admin and not (claim and sign and value):
            raise SettingsError("'oidc_admin' must be CLAIM=VALUE.", hint='for example "groups=chat-admins"')
        try:
            import authlib  # noqa: F401
        except ImportError as exc:
            raise SettingsError(
                "Login with OpenID Connect needs Authlib, which is not installed.",
                hint="./rally add oidc, or pip install 'rallychat[oidc]'",
            ) from exc
        self.issuer = issuer
        self.says_who_is_admin = bool(settings.oidc_admin)
        self._id = settings.oidc_client_id
        self._secret = settings.oidc_client_secret
        self._admin = (claim, value)
        self._domains = frozenset(domain.lower().removeprefix("@") for domain in settings.oidc_domains)
        self._described: tuple[float, dict[str, Any]] | None = None
        self._keys: KeySet | None = None

    async def begin(self, redirect: str) -> tuple[str, Flow]:
        """Where to send a browser, and what it has to come back with.

        Raises:
            LoginFailed: the provider cannot be reached, or is not the one that was named.
        """
        flow = Flow(secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(48))
        described = await self._description()
        async with self._client(redirect) as client:
            url, _ = client.create_authorization_url(
                described["authorization_endpoint"],
                state=flow.state,
                nonce=flow.nonce,
                code_verifier=flow.verifier,
            )
        return str(url), flow

    async def finish(self, flow: Flow, answer: Mapping[str, str], redirect: str) -> Vouched:
        """Whom the provider vouches for, to a browser that has come back with `answer`.

        Raises:
            LoginFailed: for nobody, or not to us, or not now.
        """
        if not secrets.compare_digest(answer.get("state", "").encode(), flow.state.encode()):
            raise LoginFailed("This login was not begun here, or is too old.", hint="log in again")
        if "error" in answer or not answer.get("code"):
            raise LoginFailed("The provider did not let you in.", hint="log in again, or ask an admin")
        if answer.get("iss", self.issuer) != self.issuer:
            raise LoginFailed("Another provider has answered.", hint="log in again")
        token = await self._token(answer["code"], flow, redirect)
        claims = await self._claims(token, flow.nonce)
        return self._vouched(claims)

    def _vouched(self, claims: Mapping[str, Any]) -> Vouched:
        verified = claims.get("email_verified") is True and isinstance(claims.get("email"), str)
        email = str(claims["email"]) if verified else None
        if self._domains and (email is None or email.rpartition("@")[2].lower() not in self._domains):
            raise LoginFailed("Your address is not one that may log in here.", hint="ask an admin")
        claim, value = self._admin
        held = claims.get(claim, ()) if claim else ()
        admin = value in held if isinstance(held, list | tuple) else bool(claim) and held == value
        named = claims.get("preferred_username") or email or claims.get("name") or claims["sub"]
        return Vouched(str(claims["sub"]), str(named), email, admin)

    async def _token(self, code: str, flow: Flow, redirect: str) -> str:
        from authlib.common.errors import AuthlibBaseError

        described = await self._description()
        try:
            async with self._client(redirect) as client:
                answer = await client.fetch_token(
                    described["token_endpoint"], code=code, code_verifier=flow.verifier
                )
            return str(answer["id_token"])
        except (AuthlibBaseError, *_UNREACHED, LookupError, ValueError, TypeError) as exc:
            raise LoginFailed("The provider did not confirm this login.", hint="log in again") from exc

    async def _claims(self, token: str, nonce: str) -> dict[str, Any]:
        """What a token says, if it is the provider's, for us, for this login, and still good."""
        from joserfc import jwt
        from joserfc.errors import JoseError

        registry = jwt.JWTClaimsRegistry(
            leeway=LEEWAY,
            iss={"essential": True, "value": self.issuer},
            aud={"essential": True, "value": self._id},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
            nonce={"essential": True, "value": nonce},
        )
        try:
            try:
                read = jwt.decode(token, await self._key_set(), algorithms=ALGORITHMS)
            except (JoseError, ValueError):  # the provider may have changed its keys
                self._keys = None
                read = jwt.decode(token, await self._key_set(), algorithms=ALGORITHMS)
            claims = dict(read.claims)
            registry.validate(claims)
        except (JoseError, ValueError, TypeError, LookupError) as exc:
            raise LoginFailed("The provider's token is not good.", hint="log in again") from exc
        if claims.get("azp", self._id) != self._id or not isinstance(claims["sub"], str) or not claims["sub"]:
            raise LoginFailed("The provider's token is not for this server.", hint="log in again")
        return claims

    async def _description(self) -> dict[str, Any]:
        if self._described is None or time.monotonic() > self._described[0] + FRESH:
            found = await self._fetched(f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
            if found.get("issuer") != self.issuer:
                raise LoginFailed(
                    "The provider calls itself otherwise than 'oidc_issuer' does.", hint="ask an admin"
                )
            self._described = (time.monotonic(), found)
        return self._described[1]

    async def _key_set(self) -> KeySet:
        from joserfc.jwk import KeySet

        if self._keys is None:
            described = await self._description()
            self._keys = KeySet.import_key_set(await self._fetched(described["jwks_uri"]))  # type: ignore[arg-type]
        return self._keys

    async def _fetched(self, url: str) -> dict[str, Any]:
        try:
            async with httpx.AsyncClient(timeout=_TIMEOUT) as client:
                answer = await client.get(url)
                answer.raise_for_status()
                return dict(answer.json())
        except (*_UNREACHED, ValueError, TypeError) as exc:
            raise LoginFailed("The login's provider cannot be reached.", hint="try again later") from exc

    def _client(self, redirect: str) -> AsyncOAuth2Client:
        from authlib.integrations.httpx_client import AsyncOAuth2Client

        secret = self._secret.get_secret_value() if self._secret else None
        return AsyncOAuth2Client(
            client_id=self._id,
            client_secret=secret,
            token_endpoint_auth_method="client_secret_basic" if secret else "none",
            scope=_SCOPE,
            redirect_uri=redirect,
            code_challenge_method="S256",
            timeout=_TIMEOUT,
        )
