# syntax=docker/dockerfile:1.7
# The server: the program, the two database clients that it links, and the certificates that it trusts. It contains no
# weights: mount a folder of them at /models. It writes to /data, unless settings name another folder; several replicas
# share images and models in /blobs. The rest may be read-only.
# build.sh builds it for publishing; prove.sh executes this file without Docker.
ARG RUST_IMAGE=docker.io/library/rust:1.95.0-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082
ARG DEBIAN_IMAGE=docker.io/library/debian:bookworm-20260824-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171

FROM ${RUST_IMAGE} AS build
# Debian's packages of that moment, for reproducible images; empty: today's.
ARG SNAPSHOT=20260824T000000Z
COPY deploy/docker/snapshot.sh /usr/local/sbin/
# The snapshot pins the versions.
# hadolint ignore=DL3008
RUN snapshot.sh "${SNAPSHOT}" \
    && apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends g++ make nasm pkg-config libpq-dev default-libmysqlclient-dev \
    && rm -rf /var/lib/apt/lists/*
# Writes the list of crates into the program, where scanners and BuildKit's SBOM find it.
RUN cargo install --locked --quiet --version 0.7.7 cargo-auditable
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY backend backend
COPY cli cli
COPY gst-plugins gst-plugins
COPY models models
COPY tests tests
ARG SOURCE_DATE_EPOCH
# Programs show their commit.
ARG REVISION=
# Cargo features: `cuda` runs networks on NVIDIA devices.
ARG FEATURES=
ENV RUSTFLAGS="--remap-path-prefix=/src=facepipe --remap-path-prefix=/usr/local/cargo=cargo" \
    CARGO_INCREMENTAL=0
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    FACEPIPE_COMMIT="${REVISION}" cargo auditable build --release --locked -p facepipe-backend --features "${FEATURES}" \
    && install -D target/release/facepipe-backend /out/facepipe-backend

FROM ${DEBIAN_IMAGE} AS backend
ARG SNAPSHOT=20260824T000000Z
ARG SOURCE_DATE_EPOCH
COPY deploy/docker/snapshot.sh /usr/local/sbin/
# hadolint ignore=DL3008
RUN snapshot.sh "${SNAPSHOT}" \
    && apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends ca-certificates libmariadb3 libpq5 \
    && useradd --uid 10001 --user-group --no-log-init --home-dir /nonexistent --shell /usr/sbin/nologin facepipe \
    && install -d -o facepipe -g facepipe -m 0700 /data /blobs \
    && install -d /models \
    && rm -rf /usr/local/sbin/snapshot.sh /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old \
        /var/cache/ldconfig/aux-cache /var/log/*
COPY --from=build /out/facepipe-backend /usr/local/bin/
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="facepipe-backend" \
      org.opencontainers.image.description="Face recognition over HTTP: enrol people, train, ask who is on a picture, store who was seen where and when" \
      org.opencontainers.image.source="https://github.com/facepipe/facepipe" \
      org.opencontainers.image.documentation="https://github.com/facepipe/facepipe/blob/main/docs/deploy.md" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
ENV FACEPIPE_LISTEN=0.0.0.0:8080 \
    FACEPIPE_METRICS_LISTEN=0.0.0.0:9464 \
    FACEPIPE_DATA_DIR=/data \
    FACEPIPE_MODELS=/models \
    FACEPIPE_LOG_FORMAT=json
# A numeric id, so that Kubernetes can verify that it is not root.
USER 10001:10001
WORKDIR /data
VOLUME ["/data", "/blobs"]
EXPOSE 8080 9464
STOPSIGNAL SIGTERM
# The program checks itself, because the image needs no shell.
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 \
    CMD ["/usr/local/bin/facepipe-backend", "health"]
ENTRYPOINT ["/usr/local/bin/facepipe-backend"]
