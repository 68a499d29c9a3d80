# docker build -t hetcl .                                    for CPUs
# docker build --build-arg DEVICE=cuda -t hetcl:cuda .       for NVIDIA GPUs: PyTorch brings its CUDA libraries
#
# docker run --rm -v "$PWD:/data" hetcl pretrain --data photos --out run --recipe small
# docker run --rm --gpus all --shm-size 8g -v "$PWD:/data" hetcl:cuda pretrain --data photos --out run
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

ARG DEVICE=cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# The libraries first, in a layer that changes of the code do not touch.
WORKDIR /build
COPY constraints.txt ./
RUN case "$DEVICE" in \
      cpu) export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu ;; \
      cuda) ;; \
      *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 1 ;; \
    esac; \
    pip install --no-cache-dir -c constraints.txt torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir -c constraints.txt . && rm -rf /build/*

# Files that are written belong to whoever runs it: add --user "$(id -u):$(id -g)".
RUN useradd --create-home hetcl && mkdir /data && chown hetcl /data
USER hetcl
ENV HOME=/tmp
WORKDIR /data
ENTRYPOINT ["hetcl"]
CMD ["--help"]
