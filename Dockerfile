ARG BASE_IMAGE=python:3.12-slim-bookworm
# docker build -t swin2sr . && docker run --rm --read-only --tmpfs /tmp -p 8000:8000 swin2sr

# What is installed, in a virtual environment that the next stage takes as it is.
FROM ${BASE_IMAGE} AS build
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/swin2sr
ENV PATH=/opt/swin2sr/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY constraints.txt pyproject.toml ./
# An index, or a folder of wheels. Nothing but torch comes from it, and it must not bring CUDA along.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN case "$TORCH_INDEX" in \
      http*) from="--retries 2 --index-url $TORCH_INDEX" ;; \
      *) from="--no-index --find-links $TORCH_INDEX" ;; \
    esac \
    && pip install --quiet --no-deps --constraint constraints.txt $from torch
RUN python3 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      > requirements.txt \
    && pip install --quiet --constraint constraints.txt --requirement requirements.txt
COPY setup.p[y] README.md LICENSE NOTICE ./
COPY app app
COPY model model
# setuptools is there already, in the version of the lock.
RUN pip install --quiet --no-deps --no-build-isolation . \
    && python3 -c "import torch; assert torch.version.cuda is None, 'this is not a CPU build of torch'" \
    && pip uninstall --quiet --yes pip

FROM ${BASE_IMAGE} AS cpu
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="swin2sr-serve" \
      org.opencontainers.image.description="An HTTP service that runs Swin2SR, on CPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
RUN groupadd --gid 10001 swin2sr \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /cache --shell /usr/sbin/nologin swin2sr \
    && install --directory --owner swin2sr --group swin2sr /cache
COPY --from=build /opt/swin2sr /opt/swin2sr
COPY docker/healthcheck.py /opt/swin2sr/healthcheck.py
ENV PATH=/opt/swin2sr/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SWIN2SR_HOST=0.0.0.0 \
    SWIN2SR_CACHE_DIR=/cache
# Written to: /cache (fetched weights) and /tmp (large uploads while they arrive); all else may be read-only.
VOLUME /cache
WORKDIR /cache
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python3", "/opt/swin2sr/healthcheck.py"]
CMD ["swin2sr", "serve"]
