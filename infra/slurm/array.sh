#!/bin/bash
@OPTIONS@
# Written by flows/launch/slurm_scripts.py from infra/slurm/array.sh: one element of an array that a stage asked for.
umask 077
@ENVIRONMENT@
@SETUP@
mkdir -p "$MOXIN_SCRATCH"
exec srun --export=ALL @SRUN@ bash -c @COMMAND@
