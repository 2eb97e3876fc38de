#!/usr/bin/env bash
# A run on several nodes that takes as many jobs as it needs: submit it once, from the root of the checkout on a disk that
# all nodes see, with the environment activated.
#   sbatch scripts/slurm.sh
# Not run on a real cluster: none was at hand. Only its exit codes were tried, with stand-ins for srun and scontrol.
#SBATCH --job-name=mlp_lm
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
# Two minutes before the end, all processes get SIGTERM: time to reach the next log point and save. This shell does not.
#SBATCH --signal=TERM@120
#SBATCH --requeue
# One log for all jobs of the run.
#SBATCH --open-mode=append
set -euo pipefail

code=0
srun --kill-on-bad-exit=1 python -m mlp_lm fit --config configs/best.yaml --run_dir runs/big --ckpt_path auto \
    --trainer.num_nodes "$SLURM_NNODES" --trainer.devices 8 || code=$?
# Stopped by SIGTERM, with the run saved. Anything else is the end of the run, or a mistake that would come again.
if [ "$code" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
