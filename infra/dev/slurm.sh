#!/usr/bin/env bash
# A Slurm cluster on one Debian machine, for development and CI: munge, slurmctld, and slurmd for two virtual nodes on loopback.
# Idempotent; needs root. There is no accounting database, so states come from slurmctld alone, as on many small sites.
#   infra/dev/slurm.sh          start
#   infra/dev/slurm.sh stop     stop what this script started
set -euo pipefail
state=${MOXIN_SLURM_STATE:-/var/lib/moxin-slurm}
nodes=2

stop() {
  for file in "$state"/run/*.pid; do
    [ -f "$file" ] || continue
    local pid; pid=$(cat "$file")
    if grep -qsE '^slurm' "/proc/$pid/comm"; then kill "$pid" || true; fi
    rm -f "$file"
  done
}

answers() { [ "$(timeout 5 sinfo -h -o '%t' -N 2>/dev/null | grep -cE '^(idle|mix|alloc)$')" = "$nodes" ]; }

start() {
  if [ -f "$state/slurm.conf" ]; then
    export SLURM_CONF=$state/slurm.conf
    if answers; then return 0; fi
  fi
  if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
  fi
  mkdir -p "$state"/run "$state"/ctld "$state"/log /run/munge
  chown munge:munge /run/munge
  if ! munge -n >/dev/null 2>&1; then
    setsid runuser -u munge -- /usr/sbin/munged --force </dev/null >/dev/null 2>&1
    for _ in $(seq 50); do munge -n >/dev/null 2>&1 && break; sleep 0.1; done
  fi
  local host; host=$(hostname -s)
  local cores; cores=$(getconf _NPROCESSORS_ONLN)  # not nproc: OMP_NUM_THREADS would bend it
  local memory; memory=$(awk '/MemTotal/ {print int($2 / 1024 / 2)}' /proc/meminfo)
  cat >"$state/slurm.conf" <<CONF
ClusterName=moxin
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=6817
AuthType=auth/munge
StateSaveLocation=$state/ctld
SlurmctldPidFile=$state/run/slurmctld.pid
SlurmdPidFile=$state/run/slurmd-%n.pid
SlurmdSpoolDir=$state/spool-%n
SlurmctldLogFile=$state/log/slurmctld.log
SlurmdLogFile=$state/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobRequeue=1
KillWait=30
MinJobAge=300
AuthInfo=cred_expire=5
ReturnToService=2
MpiDefault=none
NodeName=virtual[1-$nodes] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-1700$nodes] CPUs=$cores RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=virtual[1-$nodes] Default=YES MaxTime=INFINITE State=UP
CONF
  export SLURM_CONF=$state/slurm.conf
  setsid slurmctld </dev/null >/dev/null 2>&1
  for i in $(seq $nodes); do
    mkdir -p "$state/spool-virtual$i"
    setsid slurmd -N "virtual$i" </dev/null >/dev/null 2>&1
  done
  for _ in $(seq 300); do answers && return 0; sleep 0.1; done
  echo "Slurm does not come up: $(sinfo 2>&1 | tail -1); logs: $state/log" >&2
  tail -3 "$state"/log/*.log >&2
  return 1
}

case "${1:-start}" in
  start) start; echo "export SLURM_CONF=$state/slurm.conf" ;;
  stop) stop ;;
  *) echo "usage: $0 [start|stop]" >&2; exit 2 ;;
esac
