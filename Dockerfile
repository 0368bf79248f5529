# The service, and nothing that builds it. See docker-compose.yml for how it is run.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Wheels only: a package without one stops the build here, and no compiler is needed.
COPY requirements.lock /tmp/requirements.lock
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --only-binary :all: \
        --require-hashes --requirement /tmp/requirements.lock \
    && /opt/venv/bin/pip uninstall --quiet --yes setuptools pip \
    && find /opt/venv -type d -name tests -prune -exec rm -rf {} + \
    && /opt/venv/bin/python -m compileall -q -j 0 /opt/venv
COPY gunicorn.conf.py /srv/yujian/
COPY app /srv/yujian/app
COPY workers /srv/yujian/workers
COPY scripts /srv/yujian/scripts
# The service may not write there, so Python cannot compile at the start.
RUN /opt/venv/bin/python -m compileall -q -j 0 /srv/yujian

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="Yujian Presence" \
      org.opencontainers.image.description="A real-time push server"
# Its own Python stays, without what installs packages.
RUN (python -m pip uninstall --quiet --yes --root-user-action ignore setuptools wheel pip || true) \
    && groupadd --gid 10001 yujian \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data \
        --shell /usr/sbin/nologin yujian \
    && install --directory --owner 10001 --group 10001 --mode 0700 /data
COPY --from=build /opt/venv /opt/venv
COPY --from=build /srv/yujian /srv/yujian
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    BIND=0.0.0.0:3001 \
    DATA_DIR=/data \
    MASTER_PID_FILE=/tmp/master.pid \
    LOG_FORMAT=json
WORKDIR /srv/yujian
USER 10001:10001
VOLUME /data
EXPOSE 3001
# gunicorn stops gracefully on TERM: it drains connections over DRAIN_SECONDS.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s --retries=3 \
    CMD ["python", "-m", "scripts.healthy"]
# Beside a container that runs with the same /data, network, /dev/shm and process ids: as its successor.
CMD ["python", "-m", "workers.start"]
