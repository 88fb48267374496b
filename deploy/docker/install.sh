#!/bin/sh
# Everything that deploy/docker/Dockerfile does inside an image. It works in any Debian 12.
#
#   install.sh tools               what a stage that builds needs
#   install.sh packages IMAGE      memserve and its locked packages, in a virtual environment at $PREFIX
#   install.sh system IMAGE        Debian's packages, the user and the folders of an image
#   install.sh list                which packages the image has, with their licences: $PREFIX/sbom.json
#
# IMAGE: gateway, worker-cpu or worker-cuda.
# PREFIX: where the virtual environment goes. PYTHON: the Python that it is made of.
# WHEELS: a folder of wheels that go before the index. PIP_ARGS: more options of pip, such as an index.
set -eu

PREFIX=${PREFIX:-/opt/memserve}
PYTHON=${PYTHON:-python3.11}
WHEELS=${WHEELS:-/wheels}
PIP_ARGS=${PIP_ARGS:-}
SOURCE=$(cd "$(dirname "$0")/../.." && pwd)
USER_ID=10001
DATA=/var/lib/memserve

lock_of() {
  case $1 in
    gateway) echo gateway.lock ;;
    worker-cpu) echo cpu.lock ;;
    worker-cuda) echo cuda.lock ;;
    *) echo "install.sh: no image is called '$1'" >&2; return 1 ;;
  esac
}

debian_packages_of() {
  case $1 in
    tools) echo "ca-certificates python3.11 python3.11-venv" ;;
    gateway) echo "ca-certificates python3.11" ;;
    # g++ and Python's headers: torch compiles kernels where it runs, on the CPU too.
    # wget: KubeRay's own probes of a Ray pod call it.
    worker-*) echo "ca-certificates python3.11 python3.11-dev g++ libnuma1 wget" ;;
  esac
}

debian() {
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq -o Dpkg::Use-Pty=0 update
  # The base image has a date. What Debian has mended since comes in here.
  apt-get -qq -o Dpkg::Use-Pty=0 -y upgrade
  apt-get -qq -o Dpkg::Use-Pty=0 -y install --no-install-recommends $(debian_packages_of "$1")
  apt-get clean
  rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log /var/log/alternatives.log
}

packages() {
  lock=$SOURCE/deploy/locks/$(lock_of "$1")
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  pip="$scratch/tools/bin/pip --disable-pip-version-check --quiet"
  links=
  if [ -d "$WHEELS" ]; then links="--find-links $WHEELS"; fi
  # pip stays outside: a running image installs nothing.
  "$PYTHON" -m venv "$scratch/tools"
  "$PYTHON" -m venv --without-pip "$PREFIX"
  $pip install --no-deps $links $PIP_ARGS -r "$SOURCE/deploy/locks/build.lock"
  $pip wheel --no-deps --no-build-isolation --wheel-dir "$scratch/built" "$SOURCE"
  # The locks are complete.
  $pip --python "$PREFIX/bin/python" install --no-deps --no-build-isolation $links $PIP_ARGS \
    -r "$lock" "$scratch"/built/*.whl
}

system() {
  lock_of "$1" >/dev/null
  debian "$1"
  groupadd --gid $USER_ID memserve
  useradd --uid $USER_ID --gid $USER_ID --no-create-home --home-dir "$DATA/home" \
    --shell /usr/sbin/nologin memserve
  # A volume that is empty takes its owner from here.
  install -d -o $USER_ID -g $USER_ID -m 0700 "$DATA" "$DATA/modules"
  # A login shell, which KubeRay starts Ray in, sets PATH anew.
  echo "PATH=$PREFIX/bin:\$PATH" >/etc/profile.d/memserve.sh
  rm -f /var/log/lastlog /var/log/faillog
  # No program gives whoever runs it other rights.
  find / -xdev -type f -perm /6000 -exec chmod a-s {} +
}

case ${1:-} in
  tools) debian tools ;;
  packages) packages "${2:-}" ;;
  system) system "${2:-}" ;;
  list) "$PREFIX/bin/python" "$SOURCE/deploy/docker/sbom.py" >"$PREFIX/sbom.json" ;;
  *) sed -n 's/^#   /  /p' "$0" >&2; exit 2 ;;
esac
