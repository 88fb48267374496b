#!/bin/sh
# Make the secrets of compose.yaml in deploy/docker/secrets, or in the folder that is named. What is there
# already stays as it is: two secrets that belong together are made together.
set -eu
folder=${1:-$(dirname "$0")/secrets}
random() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }
# Compose mounts the files as they are, and containers have users of their own: everybody may read a file, and
# only its owner may enter the folder.
umask 022
mkdir -p "$folder"
chmod 0700 "$folder"
for name in salt_key metrics_key; do
  [ -s "$folder/$name" ] || random >"$folder/$name"
done
for name in registry cache; do
  url=$folder/redis_url
  [ $name = registry ] || url=$folder/cache_redis_url
  if [ ! -s "$folder/$name.conf" ] || [ ! -s "$url" ]; then
    password=$(random)
    echo "requirepass $password" >"$folder/$name.conf"
    echo "redis://:$password@$name:6379/0" >"$url"
  fi
done
echo "the secrets are in $folder"
