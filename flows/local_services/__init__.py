"""The services of `moxin up`: SeaweedFS (S3), a Prefect server on SQLite, a worker. On loopback, with generated keys.

State lives under MOXIN_HOME: services.json (ports, process identities), credentials.json (mode 0600), logs/, data.
Every process is known by number *and* start time, so a stale file never leads to somebody else's process; services
whose file is lost or damaged are found again (processes.py). Who answers on a port is believed only when it knows our
keys and refuses others.
"""

from flows.local_services.lifecycle import Service, close_lost_runs, down, password, status, up

__all__ = ["Service", "close_lost_runs", "down", "password", "status", "up"]
