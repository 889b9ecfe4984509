# streamer in a container: docker build -t streamer . && docker run -v ./streamer.toml:/streamer/streamer.toml streamer run
FROM python:3.13-slim

COPY pyproject.toml README.md LICENSE /src/
COPY streamer /src/streamer
COPY sql /src/sql
RUN pip install --no-cache-dir /src && rm -r /src && useradd --create-home --home-dir /streamer streamer

USER streamer
WORKDIR /streamer
HEALTHCHECK --interval=10s --start-period=30s CMD streamer status || exit 1
ENTRYPOINT ["streamer"]
CMD ["run"]
