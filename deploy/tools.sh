#!/bin/sh
# Prometheus and promtool from Debian's package, which the tests of deploy/prometheus run. Nothing is installed
# or started, and no root is needed: the package is unpacked into .cache/debian. Does nothing where both
# programs are there already.
set -eu
cd "$(dirname "$0")/.."
folder=$PWD/.cache/debian
if { command -v promtool && command -v prometheus; } >/dev/null || [ -x "$folder/usr/bin/promtool" ]; then
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "deploy-tools: this is no Debian; install Prometheus and put promtool and prometheus on PATH" >&2
  exit 1
fi
state=$folder/apt
mkdir -p "$state/lists/partial" "$state/archives/partial"
apt() {
  apt-get -qq -o Dir::State::Lists="$state/lists" -o Dir::Cache="$state" -o Debug::NoLocking=1 \
    -o APT::Sandbox::User="$(id -un)" "$@"
}
cd "$state/archives"
if ! { apt update && apt download prometheus; } >&2; then
  echo "deploy-tools: apt-get cannot fetch Debian's package prometheus; check /etc/apt/sources.list" >&2
  exit 1
fi
dpkg -x prometheus_*.deb "$folder.unpacking"
mkdir -p "$folder/usr/bin"
mv "$folder.unpacking/usr/bin/prometheus" "$folder.unpacking/usr/bin/promtool" "$folder/usr/bin/"
rm -rf "$folder.unpacking" "$state"
