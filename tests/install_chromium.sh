#!/bin/sh
# The tests of the page at `/` look at it in Chromium, which pip does not have. Where it is missing, Debian's or
# Ubuntu's package is installed; that needs root. Nothing is done where it is there.
set -eu

has_all() { command -v chromium >/dev/null && command -v chromedriver >/dev/null; }

has_all && exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium chromium-driver >/dev/null
fi
has_all && exit 0
echo "chromium and chromedriver are neither here nor could they be installed; the tests of the page need them:
  as root: apt-get install chromium chromium-driver
  or run all other tests: .venv/bin/python -m pytest -m 'not chromium'" >&2
exit 1
