#!/bin/bash
# Encode an atlas with an array of SLURM jobs: fit a hasher, do the partitions, merge them.
#
#   bash slurm-array.sh ATLAS.zarr RUN [JOBS]     (JOBS: 16 if not given)
#
# ATLAS.zarr and RUN must be on a file system that all nodes share. HASHER=folder takes a fitted hasher instead of
# fitting one. Options of sbatch are below; others (--account, --partition) go into SBATCH_ACCOUNT, SBATCH_PARTITION.
# If jobs failed, the last step says which partitions are missing. Run the same command again then: what is done is
# kept, and jobs that find nothing to do end at once.
#SBATCH --job-name=hashstream
#SBATCH --cpus-per-task=4
#SBATCH --mem=2G
#SBATCH --time=02:00:00
set -euo pipefail

if [[ -n "${SLURM_ARRAY_TASK_ID:-}" ]]; then # a job of the array
  exec hashstream encode "$ATLAS" -o "$RUN" --hasher "$HASHER" --max-memory 1GiB \
    --threads "${SLURM_CPUS_PER_TASK:-1}" --partition "$SLURM_ARRAY_TASK_ID/$JOBS"
fi

if [[ $# -lt 2 ]]; then
  echo "usage: bash slurm-array.sh ATLAS.zarr RUN [JOBS]" >&2
  exit 2
fi
export ATLAS=$1 RUN=${2%/} JOBS=${3:-16} HASHER=${HASHER:-}
if [[ ! "$JOBS" =~ ^[1-9][0-9]*$ ]]; then
  echo "$0: JOBS is $JOBS; expected a whole number from 1 on" >&2
  exit 2
fi
after=()
if [[ -z "$HASHER" ]]; then
  HASHER=$RUN.hasher
  if [[ ! -d "$HASHER" ]]; then
    fit=$(sbatch --parsable --job-name=hashstream-fit --cpus-per-task=4 --mem=2G --time=01:00:00 \
      --wrap 'hashstream fit "$ATLAS" -o "$HASHER"')
    after=("--dependency=afterok:${fit%%;*}") # with several clusters: JOB;CLUSTER
  fi
fi
array=$(sbatch --parsable ${after[@]+"${after[@]}"} --array="0-$((JOBS - 1))" "$0")
# afterany: where jobs failed, finalize says what is missing and ends with 3.
sbatch --parsable --job-name=hashstream-finalize --mem=2G --time=01:00:00 \
  --dependency="afterany:${array%%;*}" --wrap 'hashstream finalize "$RUN"'
