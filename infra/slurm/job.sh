#!/bin/bash
@OPTIONS@
# Written by flows/launch/slurm_scripts.py from infra/slurm/job.sh. Runs again from the start after a requeue: the stage then resumes
# from its own checkpoint.
umask 077
@ENVIRONMENT@
@SETUP@
mkdir -p "$MOXIN_SCRATCH"
rm -f @EXIT@
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol --oneliner show node "$first" | sed -E 's/.* NodeAddr=([^ ]+).*/\1/')
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))

trap : TERM  # the steps get the signal too; this script lives on to say how they ended
srun --kill-on-bad-exit=1 --export=ALL @SRUN@ bash -c @COMMAND@ &
step=$!
wait "$step"
status=$?
while kill -0 "$step" 2>/dev/null; do  # a signal ended the wait, not the step
  wait "$step"
  status=$?
done
echo "$status" >@EXIT@.new && mv @EXIT@.new @EXIT@
exit "$status"
