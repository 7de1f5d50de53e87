"""The raw engine's own HTTP server, as llama-server runs it: the same weights and settings as our worker's.

Its standard input brings one line of JSON, `{"spec": WorkerSpec, "port": n, "threads": n, "plain": bool}`; it ends when
that does. A plain one keeps prompts that had to leave their slots in memory, as llama-server does by itself.
"""

from __future__ import annotations

import json
import sys

from rallychat.engines.llamacpp_params import common_params
from rallychat.engines.protocol import WorkerSpec


def main() -> None:
    """Serves until standard input ends."""
    import xllamacpp

    job = json.loads(sys.stdin.readline())
    spec = WorkerSpec(**job["spec"])
    params = common_params(spec, spec.window)
    params.hostnames, params.port, params.n_threads_http = ["127.0.0.1"], job["port"], job["threads"]
    if job["plain"]:
        own = xllamacpp.CommonParams()
        params.cache_ram_mib, params.cache_idle_slots = own.cache_ram_mib, own.cache_idle_slots
    server = xllamacpp.Server(params)
    print(json.dumps({"ready": server is not None}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
