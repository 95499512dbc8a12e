#!/usr/bin/env bash
# Pretrain one model on several machines under Slurm: `sbatch --nodes=4 scale/slurm.sh gpt_oss`, from the project's folder,
# which all machines must see. A machine that drops out and comes back is met again at the rendezvous, and training goes on
# from the last checkpoint by itself; `--requeue` does the same for the whole job.
#SBATCH --job-name=crawl2cart
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=runs/slurm-%j.txt
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?run this with sbatch}"
model=${1:?name a model, such as gpt_oss}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Torch would let trainers that are started again meet at the store of those before, and read addresses at which nobody is any more.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
srun .venv/bin/python -m torch.distributed.run \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv_backend=c10d --rdzv_id="$SLURM_JOB_ID" --rdzv_endpoint="$first:29500" --max_restarts=3 \
    -m stages.pretrain "$model"

# What ran outside DVC is recorded as the result of its stage.
.venv/bin/dvc commit -f "pretrain@$model"
