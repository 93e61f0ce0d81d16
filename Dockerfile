# The command `lighter` in an image: `docker build -t pg-lighter .`
# Trixie: Debian's stable release, the one that the official image of Node 24 is built on.
ARG NODE_IMAGE=node:24-trixie-slim

# Two installs from the lock file: all packages, to compile, and those that run.
FROM ${NODE_IMAGE} AS build
WORKDIR /app
# A static tini, so that the last stage needs no package manager. As process 1 it passes signals on and collects children.
RUN apt-get update \
  && apt-get install --yes --no-install-recommends tini \
  && rm -rf /var/lib/apt/lists/*
COPY package.json package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY tsconfig.json tsconfig.build.json ./
COPY src src
RUN npm run build \
  && find dist -type f '(' -name '*.map' -o -name '*.d.ts' ')' -delete

FROM ${NODE_IMAGE} AS packages
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund \
  # What only editors and compilers read.
  && find node_modules -type f '(' -name '*.map' -o -name '*.d.ts' -o -name '*.d.mts' -o -name '*.d.cts' ')' -delete

FROM ${NODE_IMAGE}
ARG NODE_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pg-lighter" \
  org.opencontainers.image.description="Takes heavy JSON off Postgres rows into Cloudflare R2 (or any S3 store)" \
  org.opencontainers.image.licenses="MIT" \
  org.opencontainers.image.version="${VERSION}" \
  org.opencontainers.image.revision="${REVISION}" \
  org.opencontainers.image.base.name="docker.io/library/${NODE_IMAGE}"
# In a container the API has to be reached from outside of it; AUTH_MODE decides who may call it, and dev is refused.
ENV NODE_ENV=production API_HOST=0.0.0.0 API_PORT=4001
WORKDIR /app
COPY --from=build /usr/bin/tini-static /usr/bin/tini
COPY --from=packages /app/node_modules node_modules
COPY --from=build /app/dist dist
COPY package.json LICENSE ./
COPY sql sql
# By number, for orchestrators that refuse images whose user they can't tell from root. It is `node` of the base image.
USER 1000:1000
EXPOSE 4001
# For `start` with its API; other commands end before it is asked.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["node", "--eval", "fetch(`http://127.0.0.1:${process.env.API_PORT}/healthz`).then(r => process.exit(r.ok ? 0 : 1), () => process.exit(1))"]
ENTRYPOINT ["tini", "--", "node", "/app/dist/cli/main.js"]
CMD ["start"]
