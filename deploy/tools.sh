#!/bin/sh
# Programs of Debian's packages that tests run: Prometheus and promtool (deploy/prometheus), a redis-server
# that speaks TLS, and nft for the hosts of loadtests/cluster. Nothing is installed or started, and no root is
# needed: packages are unpacked into
# .cache/debian. Does nothing where the programs are there already.
set -eu
cd "$(dirname "$0")/.."
folder=$PWD/.cache/debian
state=$folder/apt

apt() {
  apt-get -qq -o Dir::State::Lists="$state/lists" -o Dir::Cache="$state" -o Debug::NoLocking=1 \
    -o APT::Sandbox::User="$(id -un)" "$@"
}

unpack() { # Unpacks the packages into $folder.unpacking.
  if ! command -v apt-get >/dev/null; then
    echo "deploy-tools: this is no Debian; install Prometheus, Redis 7 and nftables, and put prometheus," \
      "promtool, redis-server and nft on PATH" >&2
    exit 1
  fi
  mkdir -p "$state/lists/partial" "$state/archives/partial" "$folder/usr/bin"
  rm -rf "$folder.unpacking"
  if ! { [ -n "${updated:-}" ] || apt update; } >&2 || ! (cd "$state/archives" && apt download "$@") >&2; then
    echo "deploy-tools: apt-get cannot fetch Debian's packages $*; check /etc/apt/sources.list" >&2
    exit 1
  fi
  updated=yes
  for package in "$state/archives"/*.deb; do
    dpkg -x "$package" "$folder.unpacking"
    rm "$package"
  done
}

if ! { command -v promtool && command -v prometheus; } >/dev/null && ! [ -x "$folder/usr/bin/promtool" ]; then
  unpack prometheus
  mv "$folder.unpacking/usr/bin/prometheus" "$folder.unpacking/usr/bin/promtool" "$folder/usr/bin/"
fi
if ! command -v redis-server >/dev/null && ! [ -x "$folder/usr/bin/redis-server" ]; then
  unpack redis-server redis-tools liblua5.1-0 libjemalloc2 liblzf1 libatomic1 libssl3
  rm -rf "$folder/redis"
  mkdir -p "$folder/redis"
  cp -L "$folder.unpacking/usr/bin/redis-server" "$folder.unpacking"/usr/lib/*/lib*.so.* "$folder/redis/"
  # The libraries are found beside the program, wherever this folder is moved to.
  cat >"$folder/usr/bin/redis-server" <<'END'
#!/bin/sh
redis=$(dirname "$0")/../../redis
exec env LD_LIBRARY_PATH="$redis" "$redis/redis-server" "$@"
END
  chmod +x "$folder/usr/bin/redis-server"
fi
if ! PATH=$PATH:/usr/sbin command -v nft >/dev/null && ! [ -x "$folder/usr/bin/nft" ]; then
  unpack nftables libnftables1 libnftnl11 libmnl0 libxtables12 libjansson4 libgmp10 libedit2 libtinfo6 \
    libbsd0 libmd0
  rm -rf "$folder/nft"
  mkdir -p "$folder/nft"
  cp -L "$folder.unpacking/usr/sbin/nft" "$folder.unpacking"/usr/lib/*/lib*.so.* "$folder/nft/"
  cp -L "$folder.unpacking"/lib/*/lib*.so.* "$folder/nft/" 2>/dev/null || true
  cat >"$folder/usr/bin/nft" <<'END'
#!/bin/sh
nft=$(dirname "$0")/../../nft
exec env LD_LIBRARY_PATH="$nft" "$nft/nft" "$@"
END
  chmod +x "$folder/usr/bin/nft"
fi
rm -rf "$folder.unpacking" "$state"
