"""What happens when something breaks, on purpose: the scenarios, and where each is tried.

- a worker killed between claiming a run and its first heartbeat: flows/lost_runs.py closes such runs:
  tests/integration/flows, tests/e2e/test_faults.py
- a Prefect server that hangs, answers 503 or goes away in the middle of a run, and one under load:
test_prefect_server.py
- errors of observers: tests/unit/flows/test_event_dispatch.py; what waits for a server: tests/integration/flows
- a selection with a gap: tests/integration/flows/test_plan.py, tests/flow
- a bit flipped in the local cache; a damaged newest checkpoint, all checkpoints damaged: test_damage.py
- a damaged object in the store: test_damage.py, tests/integration/flows/test_repair.py
- cut records (manifest, lease, node, attempt, tag, commit marker): tests/integration/flows/test_plan.py,
  test_ledger.py, test_repair.py
- a store that answers 503, drops connections, breaks bodies: test_store_trouble.py
- a store away from a running stage; a lease taken meanwhile: tests/integration/flows/test_execute_control.py
- a full disk: test_full_disk.py
- a lost or damaged services.json, somebody else on a port: test_local_services.py
- what killed runs leave behind: test_garbage_collection.py
- something killed at a random point: test_campaign.py; any order of requests: test_protocol.py; any bytes:
  test_damaged_bytes.py
- clocks that differ: tests/integration/core/test_leases.py
- stages and launchers that are killed: test_runtime_process.py, test_torchrun.py, tests/e2e/test_faults.py
"""
