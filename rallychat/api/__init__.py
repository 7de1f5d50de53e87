"""The HTTP face: OpenAI's routes over `ChatService`."""

from rallychat.api.app import create_app

__all__ = ["create_app"]
