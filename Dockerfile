# streamer in a container:
#   docker build -t streamer .
#   docker run --env SHOP_PASSWORD --volume ./streamer.toml:/streamer/streamer.toml:ro streamer check
#   docker run --env SHOP_PASSWORD --volume ./streamer.toml:/streamer/streamer.toml:ro streamer
# Nothing in it must be kept, unless a target is an SQLite file or jsonl: put these on a volume.

FROM python:3.13-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
COPY pyproject.toml hatch_build.py README.md LICENSE /src/
COPY streamer /src/streamer
COPY sql /src/sql
RUN python -m venv /opt/streamer && /opt/streamer/bin/pip install --no-cache-dir /src

FROM python:3.13-slim
COPY --from=build /opt/streamer /opt/streamer
RUN useradd --uid 10001 --create-home --home-dir /streamer streamer
ENV PATH=/opt/streamer/bin:$PATH
USER 10001
WORKDIR /streamer
EXPOSE 9851
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9851/healthz', timeout=4)"]
ENTRYPOINT ["streamer"]
CMD ["run"]
