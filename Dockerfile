# A Debian or Ubuntu with Python 3.11 or later and OpenSSL 3. Both stages use it: the wheel runs on what it was built on.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS builder
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc g++ libc6-dev libssl-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/gpu-provider
COPY . /src
RUN /opt/gpu-provider/bin/pip install --no-cache-dir --disable-pip-version-check '/src[uvloop]' \
    && /opt/gpu-provider/bin/pip uninstall --yes --disable-pip-version-check setuptools pip \
    && /opt/gpu-provider/bin/gpu-provider --help >/dev/null

# Debian's HAProxy with the module, and without Python: docker build --target haproxy
FROM ${BASE} AS haproxy
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates haproxy \
    && rm -rf /var/lib/apt/lists/*
COPY --from=builder /opt/gpu-provider/lib/python3*/site-packages/gpu_provider/native/gpu_provider.so /opt/gpu-provider/
COPY containers/openssl.cnf /etc/gpu-provider/openssl.cnf
COPY containers/haproxy.cfg /etc/haproxy/haproxy.cfg
ENV OPENSSL_CONF=/etc/gpu-provider/openssl.cnf
USER 65533:65532
EXPOSE 8443
STOPSIGNAL SIGUSR1
ENTRYPOINT ["haproxy", "-db", "-f", "/etc/haproxy/haproxy.cfg"]

FROM ${BASE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 python3 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=builder /opt/gpu-provider /opt/gpu-provider
# Where the service's socket is shared with other containers.
RUN install -d -o 65532 -g 65532 /run/gpu-provider
ENV PATH=/opt/gpu-provider/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 GPU_PROVIDER_ADMIN=0.0.0.0:9180
USER 65532:65532
EXPOSE 8443 9180
# Runs with a read-only root. GPU_PROVIDER_ADMIN outranks the file's `admin`, so the health check knows the port.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "import os, urllib.request; \
urllib.request.urlopen('http://127.0.0.1:' + os.environ['GPU_PROVIDER_ADMIN'].rpartition(':')[2] + '/readyz', timeout=2)"]
ENTRYPOINT ["gpu-provider"]
CMD ["terminator", "--config", "/etc/gpu-provider/terminator.toml"]
