# The trainer's image: the locked packages, then trainer/ and nothing else of the repository (.dockerignore).
# The base may be any Debian with Python >= 3.11 and its venv module: --build-arg BASE=…
# The digest makes it the same base for everybody. To renew it: docker buildx imagetools inspect python:3.11-slim-bookworm
ARG BASE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b
FROM ${BASE}

# torch.compile: Triton builds its launchers with gcc and Python.h, inductor its CPU kernels with g++.
# An image of Python's own brings the header; Debian's interpreter keeps it in python3-dev.
RUN apt-get update \
 && header="$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      g++ $([ -e "$header" ] || echo python3-dev) \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/*

# The Linux wheels of torch bring CUDA with them: 3.3 GB of downloads, which change only with the lock. Docker pulls three
# layers at a time, so they are three of about 1.1 GB each. The last command installs what is not there yet, and checks
# that it is all of the lock.
COPY requirements/trainer.txt /opt/requirements.txt
RUN python3 -m venv /opt/venv \
 && awk '/^[a-z]/ { is_wanted = /^nvidia-(cublas|cuda|cudnn|nvjitlink)/ } is_wanted' /opt/requirements.txt \
  | /opt/venv/bin/pip install --no-cache-dir --require-hashes --no-deps -r /dev/stdin
RUN awk '/^[a-z]/ { is_wanted = /^nvidia-/ } is_wanted' /opt/requirements.txt \
  | /opt/venv/bin/pip install --no-cache-dir --require-hashes --no-deps -r /dev/stdin
RUN /opt/venv/bin/pip install --no-cache-dir --require-hashes -r /opt/requirements.txt

# For machines with an Elastic Fabric Adapter: libfabric, and the plugin by which NCCL uses it. Both come with AWS's
# installer (EC2 user guide, "Elastic Fabric Adapter release notes"). --build-arg EFA=version=SHA-256
ARG EFA=
RUN [ -z "$EFA" ] || { cd /tmp && file="aws-efa-installer-${EFA%=*}.tar.gz" \
 && python3 -c 'import sys, urllib.request; urllib.request.urlretrieve(*sys.argv[1:])' \
      "https://efa-installer.amazonaws.com/$file" "$file" \
 && echo "${EFA#*=}  $file" | sha256sum --check \
 && tar -xf "$file" && cd aws-efa-installer && apt-get update \
 && DEBIAN_FRONTEND=noninteractive ./efa_installer.sh -y --skip-kmod --skip-limit-conf --skip-mpi --no-verify \
 && find /opt/amazon -name 'libnccl-net*.so' -printf '%h\n' | sort -u | grep . >/etc/ld.so.conf.d/nccl-net.conf \
 && ldconfig && apt-get clean && rm -rf /var/lib/apt/lists/* /tmp/*; }

# What the licences of all that ask for: their texts go with the image. The packages' metadata and Debian's copyright
# files have them.
COPY trainer/notices.py /opt/notices/notices.py
RUN /opt/venv/bin/python /opt/notices/notices.py >/opt/notices/NOTICES.txt

# A number, so that an orchestrator can see that it is not root. Its home is the scratch directory: every cache
# (compiled kernels, downloads) lands on the fast disk that is mounted there.
RUN useradd --uid 10001 --user-group --home-dir /scratch --create-home --shell /usr/sbin/nologin trainer
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HOME=/scratch \
    TRAINER_SCRATCH_DIR=/scratch \
    TORCHINDUCTOR_CACHE_DIR=/scratch/torchinductor
USER 10001:10001
WORKDIR /app
COPY trainer/ /app/trainer/

ARG COMMIT=unknown
ENV TRAINER_COMMIT=${COMMIT}
LABEL org.opencontainers.image.title=resnet-spot org.opencontainers.image.revision=${COMMIT}

STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "trainer.process.supervise"]
CMD ["digits"]
