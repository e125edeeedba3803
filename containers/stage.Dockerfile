# A stage: its sources and stages/core on top of its environment, nothing else. Context: the repository.
# Labels (digests of contract, source and lock) come from `moxin images build`, or `moxin images labels` with bake.
ARG ENVIRONMENT
FROM ${ENVIRONMENT} AS source
LABEL moxin.intermediate=1
ARG STAGE
COPY stages /tmp/source/stages
WORKDIR /tmp/source
USER 0
RUN python -m stages.core.bundle ${STAGE} /app

FROM ${ENVIRONMENT}
COPY --from=source /app /app
ENTRYPOINT ["/opt/venv/bin/python", "-m", "stages.core.runtime"]
