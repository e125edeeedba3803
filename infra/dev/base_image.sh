#!/usr/bin/env bash
# The image that every environment starts from: Debian 12 with Python 3.11, as moxin/base:bookworm.
# One knob, MOXIN_BASE: an image to pull (default python:3.11-slim-bookworm), or "debootstrap" to make one from Debian's
# packages, which is also what happens by itself where no registry can be reached. Needs root for debootstrap.
set -euo pipefail
tag=moxin/base:bookworm
base=${MOXIN_BASE:-python:3.11-slim-bookworm}

if docker image inspect "$tag" >/dev/null 2>&1; then exit 0; fi
if [ "$base" != debootstrap ] && timeout 120 docker pull -q "$base" >/dev/null 2>&1; then
  docker tag "$base" "$tag"
  exit 0
fi
command -v debootstrap >/dev/null || apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends debootstrap >/dev/null
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mirror=$(grep -rhoE 'https?://[^ ]*debian\.org/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null | head -1 || true)
debootstrap --variant=minbase --include=python3.11,ca-certificates bookworm "$root/os" \
  "${mirror:-http://deb.debian.org/debian}" >"$root/log" 2>&1 || { tail -5 "$root/log" >&2; exit 1; }
cd "$root/os"
# What no stage reads. dpkg's own records stay: they say what is installed, for scanners.
rm -rf var/cache/apt/* var/lib/apt/lists/* var/log/* usr/share/doc usr/share/man usr/share/info usr/share/locale
tar --numeric-owner --sort=name -c . | docker import \
  --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8' \
  --change 'LABEL org.opencontainers.image.licenses=various' --message "debootstrap bookworm, python3.11" - "$tag" >/dev/null
