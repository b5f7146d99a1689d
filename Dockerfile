# curvcli with the CPU build of torch: docker run --rm -v "$PWD":/data curvcli check run.toml
FROM python:3.12-slim

COPY pyproject.toml README.md CHANGELOG.md LICENSE /source/
COPY curvcli /source/curvcli
# hadolint ignore=DL3013
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir "/source[hf,tabular,plot,report]" \
    && rm -r /source \
    && useradd --create-home --uid 1000 curvcli

USER 1000
WORKDIR /data
ENTRYPOINT ["curvcli"]
CMD ["--help"]
