#!/bin/bash
#SBATCH --job-name=resnet50-0123abcd-1
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:8
#SBATCH --signal=B:USR1@90
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --chdir=/data/project/runs/resnet50-0123abcd-1
#SBATCH --output=/data/project/runs/resnet50-0123abcd-1/slurm/output.txt

# The run's folder holds its spec, and all that comes of it.
run=/data/project/runs/resnet50-0123abcd-1
job=$SLURM_JOB_ID
export PYTHONPATH=/opt/xrun/lib XRUN_HOME=/home/ada/.cache/xrun

# How the job ended is known from this file, too, where SLURM keeps no accounts.
finish() {
    echo "{\"exit\":$1,\"job\":\"$job\"}" > "$run/slurm/exit.new"
    mv "$run/slurm/exit.new" "$run/slurm/exit.json"
    exit "$1"
}

# USR1 comes when the time is nearly over, TERM when others need the nodes or the job is cancelled:
# the run ends after its step, with a checkpoint.
stop() {
    trap '' USR1 TERM
    signalled=yes
    [ "$1" = TERM ] || : > "$run/slurm/time-is-over"
    : > "$run/control/stop"
}
trap 'stop USR1' USR1
trap 'stop TERM' TERM

# Where the nodes' processes meet: the address that SLURM itself uses, and a port that no other job has.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
XRUN_MASTER_ADDRESS=$(scontrol -o show node "$head" | grep -oP 'NodeAddr=\K\S+')
XRUN_MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export XRUN_MASTER_ADDRESS XRUN_MASTER_PORT
/opt/xrun/bin/python -P -m runner.node begin "$run" || finish $?
# Nothing of an earlier attempt may still run.
[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || srun --nodes=2 --ntasks=2 --cpus-per-task=8 --kill-on-bad-exit=1 \
    /opt/xrun/bin/python -P -m runner.node reap "$run"
(trap '' USR1 TERM; exec srun --nodes=2 --ntasks=2 --cpus-per-task=8 --kill-on-bad-exit=1 \
    /opt/xrun/bin/python -P -m runner.node run "$run") &
step=$!
wait "$step"
code=$?
# A signal ends this shell's waiting, not the step.
[ -z "$signalled" ] || [ "$code" -le 128 ] || { wait "$step"; code=$?; }
trap '' USR1 TERM
# 75: stopped with a checkpoint. Preempted jobs are requeued by SLURM.
if [ "$code" = 75 ] && [ -e "$run/slurm/time-is-over" ] && scontrol requeue "$job"; then
    exit "$code"
fi
finish "$code"
