# docker build -t hetcl .        PyTorch from PyPI brings its CUDA libraries, and runs on CPUs as well
# docker build --build-arg TORCH_INDEX=URL -t hetcl:cpu .
#                                for CPUs alone, smaller by gigabytes: URL is PyTorch's own index of wheels for CPUs
#
# docker run --rm -v "$PWD:/data" hetcl pretrain --data photos --out run --recipe small
# docker run --rm --gpus all --shm-size 8g -v "$PWD:/data" hetcl pretrain --data photos --out run
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

ARG TORCH_INDEX=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# The libraries first, in a layer that changes of the code do not touch.
WORKDIR /build
COPY constraints.txt ./
RUN PIP_EXTRA_INDEX_URL="$TORCH_INDEX" pip install --no-cache-dir -c constraints.txt torch torchvision
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
