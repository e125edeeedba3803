#!/usr/bin/env bash
# A Docker daemon on a Debian machine without systemd: install it if it is missing, start it if it does not answer.
# Idempotent; needs root. It is for development machines and CI: a server runs its distribution's own service.
#   infra/dev/docker.sh          start
#   infra/dev/docker.sh stop     stop the engine that this script started
#   infra/dev/docker.sh restart  stop, then start: what the fault tests do in the middle of a stage
set -euo pipefail
state=${MOXIN_DOCKER_STATE:-/var/lib/moxin-docker}
pid_file=$state/dockerd.pid

answers() { curl -sf --max-time 5 --unix-socket /var/run/docker.sock http://docker/_ping >/dev/null 2>&1; }

stop() {
  [ -f "$pid_file" ] || return 0
  local pid; pid=$(cat "$pid_file")
  if grep -qs dockerd "/proc/$pid/comm"; then
    kill "$pid"
    for _ in $(seq 300); do [ -d "/proc/$pid" ] || break; sleep 0.1; done
  fi
  rm -f "$pid_file"
}

start() {
  if answers; then return 0; fi
  if ! command -v dockerd >/dev/null || ! command -v iptables >/dev/null || ! command -v curl >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends docker.io iptables curl ca-certificates >/dev/null
    # Debian 13 has buildx; without it images are built by the daemon's classic builder (flows/bake.py).
    apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends docker-buildx >/dev/null 2>&1 || true
  fi
  mkdir -p "$state"
  # overlay2 where the kernel has it, else vfs (slow, whole copies): the one choice that the engine makes badly by itself.
  local driver=overlay2
  grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null || driver=vfs
  setsid dockerd --storage-driver "$driver" --host unix:///var/run/docker.sock >>"$state/dockerd.log" 2>&1 </dev/null &
  echo $! >"$pid_file"
  for _ in $(seq 300); do answers && return 0; sleep 0.1; done
  echo "dockerd does not answer; the end of $state/dockerd.log:" >&2
  tail -5 "$state/dockerd.log" >&2
  return 1
}

case "${1:-start}" in
  start) start ;;
  stop) stop ;;
  restart) stop; start ;;
  *) echo "usage: $0 [start|stop|restart]" >&2; exit 2 ;;
esac
