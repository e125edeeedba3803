# An environment: a base with Python 3.11, and /opt/venv with the locked requirements of containers/<ENV>/. Stage images
# (stage.Dockerfile) add their sources. Context: the repository; wheels/ in it, if any, serves pip offline.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
LABEL moxin.intermediate=1
ARG ENV
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY containers/install.sh containers/cuda.lock containers/${ENV}/*.lock wheels* /build/
RUN sh /build/install.sh

FROM ${BASE}
COPY --from=build /opt/venv /opt/venv
# /scratch is where a stage may write: the root is mounted read-only. A volume mounted here takes over its owner.
RUN install -d -o 65532 -g 65532 -m 0700 /scratch
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 \
    HOME=/scratch MOXIN_SCRATCH=/scratch NUMBA_CACHE_DIR=/scratch/numba HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1
USER 65532:65532
WORKDIR /app
LABEL org.opencontainers.image.licenses=Apache-2.0
