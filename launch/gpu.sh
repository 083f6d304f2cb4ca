#!/usr/bin/env bash
# Trains on the GPUs of one or more machines under SLURM: one process a GPU (or a machine), which find each other.
#
#   launch/gpu.sh train --name=base --nodes=4 --gpus=8 --time=24:00:00 -- --config=configs/pretrain.py:base \
#       --config.data.dataset=DIR --workdir=runs/base
#   launch/gpu.sh logs --name=base --follow
#
# On one machine without SLURM nothing is needed: `albert-jax train` uses all its GPUs.
#
#   train    installs this checkout, and gives a job that runs `albert-jax train ARGUMENTS` to sbatch. When the job's time
#            is up or the machines are taken away, the run saves and the job queues again and goes on
#   status   the job in the queue
#   logs     what the job wrote
#   stop     asks the training to save and stop, and takes the job out of the queue; train goes on from there
#
# Flags, each with the environment variable that gives its default:
#
#   --name=NAME             ALBERT_GPU_NAME        of the job; a second train with it changes nothing while it is queued
#   --nodes=N               ALBERT_GPU_NODES       machines; default 1
#   --gpus=N or TYPE:N      ALBERT_GPU_GPUS        on each machine, as 8 or a100:8
#   --per=gpu or node       ALBERT_GPU_PER         a process a GPU (default), or one a machine
#   --cpus=N                ALBERT_GPU_CPUS        cores for each process; default: what the partition gives
#   --time=LIMIT            ALBERT_GPU_TIME        as 24:00:00; default: what the partition gives
#   --partition=NAME        ALBERT_GPU_PARTITION
#   --account=NAME          ALBERT_GPU_ACCOUNT
#   --sbatch_flag=FLAG                             more for sbatch, as --constraint=h100; repeat it
#   --save_seconds=N        ALBERT_GPU_SAVE        before the time is up, to save in; default 180
#   --no_setup                                     do not install; .venv is there, or albert-jax is on PATH
#   --lines=N, --follow                            of logs; default 100
#   --retries=N             ALBERT_GPU_RETRIES     tries of sbatch, and of a training that broke, in one job; default 5
#   --backoff=SECONDS       ALBERT_GPU_BACKOFF     wait after the first failure, doubled after each; default 10
#   --requeues=N            ALBERT_GPU_REQUEUES    times the job queues again because its time was up; default 100
#   --dry_run                                      print the commands and run nothing
#
# The checkout, --workdir and the data have to be in folders that all machines share.
# Exit codes: 0 done, 1 it failed, 2 something to put right in the command or the training's arguments.
set -euo pipefail

# sbatch runs a copy of this file from another folder, but in the checkout: see submit.
if [[ ${1:-} == job ]]; then ROOT=$PWD; else ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd); fi
COMMANDS=(train status logs stop)
# What sbatch refuses now it refuses again in a minute.
HOPELESS='[Ii]nvalid|[Uu]nrecognized|not available|not permitted|[Pp]ermission denied|QOS|violates|No such'

# --- Words ---

usage() { sed -n '2,/^set /{s/^# \{0,1\}//;/^set /!p;}' "$ROOT/launch/gpu.sh"; }

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }

die() {
  printf 'launch/gpu.sh: %s\n' "$2" >&2
  exit "$1"
}

# Runs a command, or only shows it.
run() {
  if ((DRY_RUN)); then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# --- The command line ---

parse() {
  NAME=${ALBERT_GPU_NAME:-} NODES=${ALBERT_GPU_NODES:-1} GPUS=${ALBERT_GPU_GPUS:-} PER=${ALBERT_GPU_PER:-gpu}
  CPUS=${ALBERT_GPU_CPUS:-} LIMIT=${ALBERT_GPU_TIME:-} PARTITION=${ALBERT_GPU_PARTITION:-}
  ACCOUNT=${ALBERT_GPU_ACCOUNT:-} SAVE=${ALBERT_GPU_SAVE:-180} RETRIES=${ALBERT_GPU_RETRIES:-5}
  BACKOFF=${ALBERT_GPU_BACKOFF:-10} REQUEUES=${ALBERT_GPU_REQUEUES:-100}
  SETUP=1 LINES_SHOWN=100 FOLLOW=0 DRY_RUN=0 SBATCH_FLAGS=() ARGUMENTS=()
  (($#)) || die 2 "no command given; there are ${COMMANDS[*]}; see launch/gpu.sh --help"
  case $1 in -h | --help | help) usage && exit 0 ;; esac
  COMMAND=$1
  [[ " ${COMMANDS[*]} job " == *" $COMMAND "* ]] || die 2 "no command '$COMMAND'; there are ${COMMANDS[*]}"
  shift
  while (($#)); do
    case $1 in
      -h | --help) usage && exit 0 ;;
      --name=*) NAME=${1#*=} ;;
      --nodes=*) NODES=${1#*=} ;;
      --gpus=*) GPUS=${1#*=} ;;
      --per=*) PER=${1#*=} ;;
      --cpus=*) CPUS=${1#*=} ;;
      --time=*) LIMIT=${1#*=} ;;
      --partition=*) PARTITION=${1#*=} ;;
      --account=*) ACCOUNT=${1#*=} ;;
      --sbatch_flag=*) SBATCH_FLAGS+=("${1#*=}") ;;
      --save_seconds=*) SAVE=${1#*=} ;;
      --no_setup) SETUP=0 ;;
      --lines=*) LINES_SHOWN=${1#*=} ;;
      --follow) FOLLOW=1 ;;
      --retries=*) RETRIES=${1#*=} ;;
      --backoff=*) BACKOFF=${1#*=} ;;
      --requeues=*) REQUEUES=${1#*=} ;;
      --dry_run) DRY_RUN=1 ;;
      --)
        shift
        ARGUMENTS=("$@")
        break
        ;;
      --config | --config[.=]* | --workdir*) die 2 "$1 is for the training: put it after --" ;;
      --*) die 2 "no flag '$1' (a value is given as --flag=VALUE); see launch/gpu.sh --help" ;;
      *) die 2 "'$1' is not a flag; a command takes flags, and after -- what is for the training" ;;
    esac
    shift
  done
}

check() {
  local number argument given=''
  [[ $NAME =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || die 2 "--name='$NAME': give the job a name, as --name=base"
  for number in "nodes=$NODES" "retries=$RETRIES" "backoff=$BACKOFF" "requeues=$REQUEUES" "save_seconds=$SAVE" \
    "lines=$LINES_SHOWN" "cpus=${CPUS:-1}"; do
    # With a leading zero the shell would read another number, or none.
    [[ ${number#*=} =~ ^(0|[1-9][0-9]{0,8})$ ]] || die 2 "--$number is not a whole number, as 8"
  done
  ((RETRIES)) || die 2 "--retries=0: give 1 to try everything once"
  if [[ $COMMAND == train || $COMMAND == job ]]; then
    ((NODES)) || die 2 "--nodes=0: give at least 1"
    [[ $GPUS =~ ^([A-Za-z0-9._-]+:)?[1-9][0-9]*$ ]] ||
      die 2 "--gpus='$GPUS': say how many each machine has, as --gpus=8 or --gpus=a100:8"
    [[ $PER == gpu || $PER == node ]] || die 2 "--per=$PER: give gpu or node"
    for argument in ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}; do
      case $argument in --workdir=?* | --config=?*) given+=${argument%%=*} ;; esac
    done
    [[ $given == *--workdir* && $given == *--config* ]] ||
      die 2 "give the training's own arguments after --, as: -- --config=configs/pretrain.py:base --workdir=runs/base"
  else
    ((${#ARGUMENTS[@]} == 0)) || die 2 "$COMMAND takes nothing after --"
  fi
  LOG=$ROOT/runs/slurm/$NAME.log
  ((DRY_RUN)) || command -v squeue >/dev/null ||
    die 2 "no SLURM here (squeue is not on PATH); on one machine run albert-jax train itself"
}

# --- The queue ---

# Prints the job's number and state, as "123 RUNNING"; nothing where there is none.
in_queue() { squeue "--user=$(id -un)" "--name=$NAME" --noheader '--format=%i %T' | head -n 1; }

# Sets SUBMITTED. Looks first: a sbatch that failed because the controller was slow may have queued the job all the same.
submit() {
  local flags=("--job-name=$NAME" "--nodes=$NODES" "--gpus-per-node=$GPUS")
  local processes=1
  if [[ $PER == gpu ]]; then processes=${GPUS##*:}; fi
  flags+=("--ntasks-per-node=$processes" "--chdir=$ROOT" "--output=$LOG" --open-mode=append --requeue)
  # To this script alone; it asks the training to save, and queues again.
  flags+=("--signal=B:USR1@$SAVE")
  if [[ -n $CPUS ]]; then flags+=("--cpus-per-task=$CPUS"); fi
  if [[ -n $LIMIT ]]; then flags+=("--time=$LIMIT"); fi
  if [[ -n $PARTITION ]]; then flags+=("--partition=$PARTITION"); fi
  if [[ -n $ACCOUNT ]]; then flags+=("--account=$ACCOUNT"); fi
  flags+=(${SBATCH_FLAGS[@]+"${SBATCH_FLAGS[@]}"})
  local job=(job "--name=$NAME" "--nodes=$NODES" "--gpus=$GPUS" "--per=$PER" "--retries=$RETRIES" "--backoff=$BACKOFF")
  job+=("--requeues=$REQUEUES" "--save_seconds=$SAVE")
  if [[ -n $CPUS ]]; then job+=("--cpus=$CPUS"); fi
  job+=(-- "${ARGUMENTS[@]}")
  SUBMITTED=''
  ((DRY_RUN)) || SUBMITTED=$(in_queue) || return
  [[ -n $SUBMITTED ]] || run sbatch --parsable "${flags[@]}" "$ROOT/launch/gpu.sh" "${job[@]}"
}

train() {
  local attempt wait=$BACKOFF errors queued
  if ((DRY_RUN)); then
    submit
    echo "# which runs, in the job:"
    step
    return
  fi
  queued=$(in_queue) || die 1 "squeue does not answer; try again"
  if [[ -n $queued ]]; then
    say "$NAME is in the queue already: job $queued"
    return 0
  fi
  mkdir -p "$ROOT/runs/slurm"
  if ((SETUP)); then install_here; fi
  errors=$(mktemp)
  ERRORS=$errors
  trap 'rm -f "$ERRORS"' EXIT
  for ((attempt = 1; ; attempt++)); do
    if submit 2>"$errors"; then
      say "$NAME is in the queue; see launch/gpu.sh logs --name=$NAME --follow"
      return 0
    fi
    cat "$errors" >&2
    if grep -qE "$HOPELESS" "$errors"; then die 2 "sbatch refused the job; put right what it says above"; fi
    ((attempt < RETRIES)) || die 1 "sbatch failed $attempt times"
    say "sbatch failed (try $attempt of $RETRIES); again in $wait s"
    sleep "$wait"
    wait=$((wait < 150 ? wait * 2 : 300))
  done
}

# Here and not in the job: the machines with GPUs often have no network.
install_here() {
  cd "$ROOT"
  # shellcheck disable=SC2034 # Read by venv.sh.
  EXTRAS=gpu
  # shellcheck source=launch/venv.sh
  source launch/venv.sh
}

status() {
  run squeue "--user=$(id -un)" "--name=$NAME" '--format=%.12i %.10T %.12M %.6D %R'
}

logs() {
  ((DRY_RUN)) || [[ -f $LOG ]] || die 2 "no log $LOG; give the --name of a job that has started"
  if ((FOLLOW)); then run tail -n "$LINES_SHOWN" -F "$LOG"; else run tail -n "$LINES_SHOWN" "$LOG"; fi
}

stop() {
  local queued='ID RUNNING'
  ((DRY_RUN)) || queued=$(in_queue) || die 1 "squeue does not answer; try again"
  case $queued in
    '') say "$NAME is not in the queue" ;;
    # To the processes, not to the script around them: they save and end, and so does the job.
    *' RUNNING') run scancel --signal=TERM "${queued% *}" ;;
    *) run scancel "${queued% *}" ;;
  esac
}

# --- In the job ---

# The training on all machines, once.
step() {
  local albert=$ROOT/.venv/bin/albert-jax flags=("--nodes=$NODES")
  # Where nothing was installed here it is on PATH, as in a container.
  if [[ ! -x $albert && $DRY_RUN$SETUP != 11 ]]; then albert="albert-jax"; fi
  if [[ $PER == gpu ]]; then
    flags+=("--ntasks-per-node=${GPUS##*:}")
  else
    flags+=(--ntasks-per-node=1)
    # Left alone, JAX takes one GPU a process under SLURM.
    JAX_LOCAL_DEVICE_IDS=$(seq -s , 0 $((${GPUS##*:} - 1)))
    export JAX_LOCAL_DEVICE_IDS
  fi
  # A process picks its GPU by number, so it has to see all of its machine's. srun does not take over sbatch's cores.
  flags+=("--gpus-per-node=$GPUS" --gpu-bind=none)
  if [[ -n $CPUS ]]; then flags+=("--cpus-per-task=$CPUS"); fi
  # One that dies would leave the others waiting for it.
  flags+=(--kill-on-bad-exit=1 --label)
  if ((DRY_RUN)) && [[ $PER == node ]]; then echo "export JAX_LOCAL_DEVICE_IDS=$JAX_LOCAL_DEVICE_IDS"; fi
  run srun "${flags[@]}" "$albert" train "${ARGUMENTS[@]}"
}

# Waits for process $1, though signals arrive; returns its exit code.
wait_for() {
  local code
  while true; do
    code=0
    wait "$1" || code=$?
    kill -0 "$1" 2>/dev/null || break
  done
  # Cut short by a signal just as the process ended, the wait told of the signal; asked again it tells of the process.
  if ((code > 128)); then
    code=0
    wait "$1" 2>/dev/null || code=$?
  fi
  return "$code"
}

job() {
  local attempt code wait=$BACKOFF out_of_time=0 taken_away=0
  trap 'out_of_time=1; say "The time is nearly up: saving."; scancel --signal=TERM "$SLURM_JOB_ID" || true' USR1
  trap 'taken_away=1' TERM
  say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $NODES x $GPUS GPUs, a process a $PER"
  for ((attempt = 1; ; attempt++)); do
    step &
    code=0
    wait_for $! || code=$?
    if ((code == 2)); then die 2 "the training's arguments or data are wrong; see above"; fi
    if ((taken_away)); then
      # SLURM told the processes too, and they saved. It is about to end the job, and knows whether it is to queue again;
      # a job that ends by itself before that counts as done, and does not.
      say "The machines are being taken away; waiting for the end."
      sleep "$SAVE"
      die 1 "the job was asked to end, and nobody ended it"
    fi
    if ((out_of_time)); then break; fi
    if ((code == 0)); then return 0; fi
    ((attempt < RETRIES)) || die 1 "the training failed $attempt times, the last time with exit code $code"
    say "The training failed with exit code $code (try $attempt of $RETRIES); again in $wait s"
    sleep "$wait"
    wait=$((wait < 150 ? wait * 2 : 300))
  done
  # Done or not: a run that is complete says so, and ends at once.
  ((${SLURM_RESTART_COUNT:-0} < REQUEUES)) || die 1 "started $((SLURM_RESTART_COUNT + 1)) times, --requeues=$REQUEUES"
  scontrol requeue "$SLURM_JOB_ID"
}

main() {
  parse "$@"
  check
  "$COMMAND"
}

main "$@"
