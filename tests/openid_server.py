"""A small OpenID provider on a real socket: discovery, login page (which lets everybody in), tokens, keys."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

CLIENT, SECRET = "rallychat", "the client's secret"
KEY = RSAKey.generate_key(2048, {"kid": "one"})
"""What it signs with. Never changed; making one takes longer than most tests."""


class OpenId:
    """What the provider says; tests change it to make it lie."""

    def __init__(self) -> None:
        self.url = ""
        self.calls_itself: str | None = None
        self.key = KEY
        self.signs_with: Any = None
        self.header: dict[str, Any] = {}
        self.person: dict[str, Any] = {
            "sub": "1234",
            "email": "grace@example.com",
            "email_verified": True,
            "preferred_username": "Grace Hopper",
        }
        self.claims: dict[str, Any] = {}
        self.refuses = ""
        self.codes: dict[str, dict[str, str]] = {}
        self.key_set_asked = 0

    def description(self) -> dict[str, Any]:
        return {
            "issuer": self.calls_itself or self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/keys",
        }

    def authorize(self, asked: dict[str, str]) -> str:
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        if self.refuses:
            back = {"error": self.refuses, "state": asked["state"]}
        else:
            code = f"code{len(self.codes)}"
            self.codes[code] = asked
            back = {"code": code, "state": asked["state"]}
        return f"{asked['redirect_uri']}?{urlencode(back)}"

    def token(self, given: dict[str, str], authorization: str) -> dict[str, Any] | None:
        """The answer to a code, once, to the right client, with the right verifier and address."""
        asked = self.codes.pop(given.get("code", ""), None)
        basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        digest = hashlib.sha256(given.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if asked is None or authorization != f"Basic {basic}":
            return None
        if challenge != asked["code_challenge"] or given.get("redirect_uri") != asked["redirect_uri"]:
            return None
        now = int(time.time())
        claims = {"iss": self.url, "aud": CLIENT, "iat": now, "exp": now + 60, "nonce": asked["nonce"]}
        claims = {k: v for k, v in (claims | self.person | self.claims).items() if v is not None}
        header = {"alg": "RS256", "kid": "one"} | self.header
        if header["alg"] in ("none", "HS256"):
            token = self._forged(header, claims)
        else:
            token = jwt.encode(header, claims, self.signs_with or self.key)
        return {"access_token": "x", "token_type": "Bearer", "id_token": token}

    def keys(self) -> Any:
        self.key_set_asked += 1
        return KeySet([self.key]).as_dict(private=False)

    def _forged(self, header: dict[str, Any], claims: dict[str, Any]) -> str:
        """Signed with nothing, or with the public key as if it were a secret."""
        parts = [_encoded(json.dumps(part).encode()) for part in (header, claims)]
        public = self.key.as_pem(private=False)
        signature = hmac.new(public, ".".join(parts).encode(), "sha256").digest()
        return ".".join([*parts, _encoded(signature if header["alg"] == "HS256" else b"")])


def _encoded(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


@contextmanager
def openid() -> Iterator[OpenId]:
    """The provider, until the block ends."""
    provider = OpenId()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            at = urlsplit(self.path)
            match at.path:
                case "/.well-known/openid-configuration":
                    self._say(provider.description())
                case "/keys":
                    self._say(provider.keys())
                case _:
                    self.send_error(404)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            given = {name: values[0] for name, values in parse_qs(body).items()}
            said = provider.token(given, self.headers.get("authorization", ""))
            self._say(said or {"error": "invalid_grant"}, 200 if said else 400)

        def _say(self, said: Any, status: int = 200) -> None:
            content = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
