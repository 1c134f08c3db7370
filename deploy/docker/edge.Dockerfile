# syntax=docker/dockerfile:1.7
# The edge: Debian's GStreamer, the plugin with its detectors and ONNX Runtime, the program `facepipe`, and the scripts of
# pipelines/. Runs one of the scripts: `docker run facepipe-edge rtsp.sh rtsp://camera/stream --backend https://…`.
# The spool is in /spool; the rest may be read-only, with a /tmp in memory.
ARG RUST_IMAGE=docker.io/library/rust:1.95.0-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082
ARG DEBIAN_IMAGE=docker.io/library/debian:bookworm-20260824-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171

# Source of weights that need not be downloaded: `--build-context mirror=FOLDER` replaces it by a folder.
FROM scratch AS mirror

FROM ${RUST_IMAGE} AS build
ARG SNAPSHOT=20260824T000000Z
COPY deploy/docker/snapshot.sh /usr/local/sbin/
# hadolint ignore=DL3008
RUN snapshot.sh "${SNAPSHOT}" \
    && apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends g++ make pkg-config python3-pip \
        libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev \
    && rm -rf /var/lib/apt/lists/*
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
ENV RUSTFLAGS="--remap-path-prefix=/src=facepipe --remap-path-prefix=/usr/local/cargo=cargo" \
    CARGO_INCREMENTAL=0
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    FACEPIPE_COMMIT="${REVISION}" cargo auditable build --release --locked -p gst-plugin-facepipe -p facepipe-cli \
    && install -D target/release/facepipe /out/bin/facepipe \
    && install -D -m 0644 target/release/libgstfacepipe.so /out/lib/gstreamer-1.0/libgstfacepipe.so
# Checked against the hashes of models/manifest.toml.
RUN --mount=type=bind,from=mirror,target=/mirror \
    /out/bin/facepipe models fetch detector runtime --mirror /mirror --dir /out/models --runtime-dir /out/lib

FROM ${DEBIAN_IMAGE} AS edge
ARG SNAPSHOT=20260824T000000Z
ARG SOURCE_DATE_EPOCH
COPY deploy/docker/snapshot.sh /usr/local/sbin/
# Without pip: the weights of a backend are published as files.
# hadolint ignore=DL3008
RUN snapshot.sh "${SNAPSHOT}" \
    && apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends ca-certificates gstreamer1.0-tools gstreamer1.0-plugins-base \
        gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-libav \
    && useradd --uid 10001 --user-group --no-log-init --home-dir /nonexistent --shell /usr/sbin/nologin facepipe \
    && install -d -o facepipe -g facepipe -m 0700 /spool \
    && install -d -o facepipe -g facepipe -m 0755 /models \
    && rm -rf /usr/local/sbin/snapshot.sh /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old \
        /var/cache/ldconfig/aux-cache /var/log/*
COPY --from=build /out /opt/facepipe
COPY pipelines /opt/facepipe/pipelines
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="facepipe-edge" \
      org.opencontainers.image.description="Detects the faces of a camera next to it and sends them to a facepipe backend" \
      org.opencontainers.image.source="https://github.com/facepipe/facepipe" \
      org.opencontainers.image.documentation="https://github.com/facepipe/facepipe/blob/main/docs/deploy.md" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
ENV PATH=/opt/facepipe/pipelines:/opt/facepipe/bin:/usr/local/bin:/usr/bin:/bin \
    GST_PLUGIN_PATH=/opt/facepipe/lib/gstreamer-1.0 \
    GST_REGISTRY=/tmp/gstreamer-registry.bin \
    ORT_DYLIB_PATH=/opt/facepipe/lib/libonnxruntime.so.1.23.2 \
    FACEPIPE_MODELS=/opt/facepipe/models \
    FACEPIPE_SPOOL_DIR=/spool
USER 10001:10001
WORKDIR /spool
VOLUME ["/spool"]
STOPSIGNAL SIGTERM
# `facepipe models fetch --dir /models` fills the backend's folder of weights.
CMD ["facepipe", "doctor"]
