#!/bin/sh
# Fetches the connector, and takes it only when it is the one that was checked.
set -eu
if [ -z "$SHA512" ]; then
  echo "no sum: fetch $URL, check it, and put its sha512sum into kustomization.yaml" >&2
  exit 1
fi
wget -q -O /tmp/plugin.zip "$URL"
echo "$SHA512  /tmp/plugin.zip" | sha512sum -c -
# What a start before left there is written over: an empty folder lives as long as its pod.
unzip -q -o /tmp/plugin.zip -d /plugins
