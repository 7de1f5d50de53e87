"""Engines: processes that speak one protocol, the workers we ship, and the client that drives them."""
