# syntax=docker/dockerfile:1
FROM rust:1.95-slim-bookworm AS build
# The allocator's own build needs it. On arm64 it is built for pages of up to 64 KiB, whatever the building machine has.
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The caches are no part of the image, so the binary is copied out of them. The volume takes over the owner and the mode of
# the empty directory.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    if [ "$(uname -m)" = aarch64 ]; then export JEMALLOC_SYS_WITH_LG_PAGE=16; fi \
 && cargo build --profile dist --locked --bin headcount \
 && install -D target/dist/headcount /out/headcount \
 && mkdir -m 0700 /out/data

# The C library, certificates, and a user that is not root; no shell.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/headcount /usr/local/bin/headcount
COPY --from=build --chown=nonroot:nonroot /out/data /var/lib/headcount
WORKDIR /var/lib/headcount
VOLUME /var/lib/headcount
# The operators' listener stays on loopback until you give it an address and a token.
ENV HEADCOUNT_DATA_DIR=/var/lib/headcount \
    HEADCOUNT_LISTEN=0.0.0.0:8080 \
    HEADCOUNT_LOG_FORMAT=json
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/headcount"]
