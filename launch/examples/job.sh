#!/usr/bin/env bash
# Made by `genrec submit --render slurm`. Run it from the project's folder: sbatch job.sh
# When the time is up or the job is pre-empted, the workers save a checkpoint and the job is queued again; sent again by
# hand it goes on as well. Machines are taken whole, because Ray's port must be free.
#SBATCH --job-name=quickstart
#SBATCH --nodes=2-4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --gpus-per-node=h100:1
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --partition=gpu
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=quickstart-%j.log
#SBATCH --signal=B:TERM@180
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address="$head:6379"

# A token of this job's own: without it nobody can send anything to its Ray.
token="$PWD/.ray-token-$SLURM_JOB_ID"
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$token")
trap 'rm -f "$token"' EXIT
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token"
export RAY_USAGE_STATS_ENABLED=0
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600

told=0
# shellcheck disable=SC2317,SC2329  # the trap below calls it
save_and_requeue() {
  told=1
  echo "Told to leave: the workers save a checkpoint, then the job is queued again."
  srun --overlap --ntasks-per-node=1 pkill -TERM -u "$(id -u)" -f '^ray::RayTrainWorker' || true
  sleep 90
  scontrol requeue "$SLURM_JOB_ID"
}
trap save_and_requeue TERM

srun --kill-on-bad-exit=1 ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus=2 --num-gpus=1 --disable-usage-stats \
  -- env RAY_ADDRESS="$address" python -m genrec train configs/quickstart.yaml 'cluster.workers=[2, 4]' cluster.gpus_per_worker=1 batch.micro_batches_per_step=12 &
training=$!
code=0
wait "$training" || code=$?
if [ "$told" = 1 ]; then
  wait "$training" || true
  exit 0
fi
exit "$code"
