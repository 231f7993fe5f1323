ARG BASE_IMAGE=python:3.12-slim-bookworm
# docker build -t swin2sr . && docker run --rm --read-only --tmpfs /tmp -p 8000:8000 swin2sr
# docker build --target cuda -t swin2sr:cuda . && docker run --rm --read-only --tmpfs /tmp -p 8000:8000 --gpus all swin2sr:cuda
# --build-arg WEIGHTS="lightweight-x2 classical-x4" puts official weights into the image; else they are fetched to /cache.

# A virtual environment with everything but PyTorch, each file checked against its hash; the compiler stays here.
FROM ${BASE_IMAGE} AS build
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/swin2sr
ENV PATH=/opt/swin2sr/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY constraints.txt docker/requirements.txt ./
RUN pip install --quiet --no-deps --require-hashes --requirement requirements.txt

# The project itself, with its C kernel.
FROM build AS package
COPY setup.py pyproject.toml README.md LICENSE NOTICE ./
COPY app app
COPY model model
RUN SWIN2SR_REQUIRE_KERNEL=1 pip install --quiet --no-deps --no-build-isolation --target /srv/swin2sr . \
    && ls /srv/swin2sr/model/kernels/*.so

FROM build AS cpu-dependencies
# An index, or a folder of wheels. Only torch comes from it, in the version of constraints.txt, and without CUDA. The
# files for compiling against torch and for testing it are left out: 145 MB.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN case "$TORCH_INDEX" in \
      http*) from="--retries 2 --index-url $TORCH_INDEX" ;; \
      *) from="--no-index --find-links $TORCH_INDEX" ;; \
    esac \
    && pip install --quiet --no-deps --constraint constraints.txt $from torch \
    && python3 -c "import torch; assert torch.version.cuda is None, 'this is not a CPU build of torch'" \
    && pip check \
    && pip uninstall --quiet --yes pip \
    && cd "$(python3 -c 'import torch; print(*torch.__path__)')" && rm -r include test

FROM build AS cuda-dependencies
# The build of torch that pip installs by default on Linux; it pins the CUDA packages it needs.
RUN pip install --quiet --constraint constraints.txt torch \
    && python3 -c "import torch; assert torch.version.cuda, 'this is not a CUDA build of torch'" \
    && pip check \
    && pip uninstall --quiet --yes pip

# The common part of both images.
FROM ${BASE_IMAGE} AS service
# `make image` and releases name it; pyproject.toml has it.
ARG VERSION=local
LABEL org.opencontainers.image.title="swin2sr-serve" \
      org.opencontainers.image.description="An HTTP service that runs Swin2SR" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
RUN groupadd --gid 10001 swin2sr \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /cache --shell /usr/sbin/nologin swin2sr \
    && install --directory --owner swin2sr --group swin2sr /cache
COPY docker/healthcheck.py /opt/healthcheck.py
ENV PATH=/srv/swin2sr/bin:/opt/swin2sr/bin:$PATH \
    PYTHONPATH=/srv/swin2sr \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SWIN2SR_HOST=0.0.0.0 \
    SWIN2SR_CACHE_DIR=/cache
# Writable paths: /cache (downloaded weights), and /tmp for libraries (never uploads). All others may be read-only.
WORKDIR /cache
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python3", "/opt/healthcheck.py"]
CMD ["swin2sr", "serve"]

FROM service AS cuda
# Triton compiles the kernels for GPUs when a variant is loaded, and needs a C compiler to link to the driver. Without it
# PyTorch's operators are used, which are slower.
USER root
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001
ENV TRITON_CACHE_DIR=/cache/triton
COPY --from=cuda-dependencies /opt/swin2sr /opt/swin2sr
COPY --from=package /srv/swin2sr /srv/swin2sr
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG WEIGHTS="" HF_ENDPOINT SWIN2SR_RELEASE_URL
RUN [ -z "$WEIGHTS" ] || swin2sr fetch $WEIGHTS
VOLUME /cache

# The last stage is built by default.
FROM service AS cpu
COPY --from=cpu-dependencies /opt/swin2sr /opt/swin2sr
COPY --from=package /srv/swin2sr /srv/swin2sr
ARG WEIGHTS="" HF_ENDPOINT SWIN2SR_RELEASE_URL
RUN [ -z "$WEIGHTS" ] || swin2sr fetch $WEIGHTS
VOLUME /cache
