# syntax=docker/dockerfile:1
# RallyChat with PostgreSQL's driver, OpenID Connect and OpenTelemetry, on llama.cpp; no compiler, no torch.
# docs/deploy.md says how to run it.

FROM python:3.12-slim AS build
WORKDIR /src
RUN python3 -m venv /opt/rallychat
COPY constraints.txt ./
RUN /opt/rallychat/bin/python -m pip install --no-cache-dir --no-compile --only-binary :all: -c constraints.txt hatchling editables
COPY pyproject.toml README.md LICENSE ./
COPY rallychat ./rallychat
RUN /opt/rallychat/bin/python -m pip install --no-cache-dir --no-compile --only-binary :all: --no-build-isolation -c constraints.txt ".[postgres,oidc,otel]" \
    && /opt/rallychat/bin/python -m pip uninstall -y hatchling editables pip

FROM python:3.12-slim
# what llama.cpp computes with on several cores; unpinned, because Debian keeps no older version than the newest
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
RUN groupadd --system --gid 10001 rallychat \
    && useradd --system --uid 10001 --gid 10001 --home-dir /data --create-home --shell /usr/sbin/nologin rallychat
COPY --from=build /opt/rallychat /opt/rallychat
ENV PATH=/opt/rallychat/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    RALLYCHAT_DATA_DIR=/data \
    RALLYCHAT_HOST=0.0.0.0 \
    RALLYCHAT_PORT=7860 \
    RALLYCHAT_OPEN_BROWSER=false \
    RALLYCHAT_LOG_FORMAT=json
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 7860
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['RALLYCHAT_PORT']}/healthz\", timeout=4)"]
ENTRYPOINT ["rallychat"]
CMD ["serve"]
