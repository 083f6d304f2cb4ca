#!/usr/bin/env bash
# Trains on a Cloud TPU VM or pod slice: creates it, installs on all workers, starts and watches the training, deletes it.
#
#   launch/tpu.sh create --name=NAME --zone=ZONE --accelerator=v5litepod-16 --spot
#   launch/tpu.sh setup  --name=NAME --zone=ZONE
#   launch/tpu.sh train  --name=NAME --zone=ZONE -- --config=configs/pretrain.py:base \
#       --config.data.dataset=gs://BUCKET/data --workdir=gs://BUCKET/runs/base
#   launch/tpu.sh logs   --name=NAME --zone=ZONE --follow
#   launch/tpu.sh delete --name=NAME --zone=ZONE
#
# All of it in one command, which restarts after preemption and deletes the TPU at the end:
#
#   launch/tpu.sh train --babysit --delete_after --name=NAME --zone=ZONE --accelerator=v5litepod-256 --spot -- \
#       --config=configs/pretrain.py:base --config.data.dataset=gs://BUCKET/data --workdir=gs://BUCKET/runs/base
#
# Every command can be repeated: it does only what is not done yet.
#
#   create   requests the TPU as a queued resource, and waits until it is ready
#   setup    copies this checkout, or clones --repo, to every worker and installs it with a separate Python 3.12
#   train    starts `albert-jax train ARGUMENTS` on every worker, in the background
#   status   the state of the request, of the TPU and of the training on each worker
#   logs     the output of the training on one worker
#   ssh      a shell on one worker; or a command on all: launch/tpu.sh ssh --name=NAME --zone=ZONE -- nproc
#   stop     makes the training save and stop; train resumes it
#   delete   deletes the TPU and its disks
#
# Flags, each with the environment variable that gives its default:
#
#   --name=NAME            ALBERT_TPU_NAME         of the queued resource and of the TPU
#   --zone=ZONE            ALBERT_TPU_ZONE         such as us-central2-b
#   --project=PROJECT      ALBERT_TPU_PROJECT      default: that of gcloud
#   --accelerator=TYPE     ALBERT_TPU_ACCELERATOR  such as v4-8, v5litepod-256, v5p-128, v6e-64
#   --runtime=VERSION      ALBERT_TPU_RUNTIME      default: by the accelerator
#   --spot                 ALBERT_TPU_SPOT=1       cheaper; may be preempted at any time
#   --repo=URL             ALBERT_TPU_REPO         default: the files of this checkout
#   --branch=NAME          ALBERT_TPU_BRANCH       branch, tag or commit of --repo; default main
#   --env=NAME             ALBERT_TPU_ENV          pass this variable of your environment to the training, as
#                                                  WANDB_API_KEY; goes in a private file, never on a command line.
#                                                  Repeat it, or separate names by commas
#   --ssh_flag=FLAG                                more flags for `gcloud … tpu-vm ssh` and `scp`, as --internal-ip
#   --create_flag=FLAG                             more for `gcloud … queued-resources create`, as --network=NAME
#   --worker=N                                     of logs and ssh; default 0, for an ssh command all
#   --lines=N, --follow                            of logs; default 100
#   --no_wait                                      create returns when the request is in the queue
#   --babysit                                      train runs all commands, watches until the training is done, and
#                                                  restarts after a preemption or a failure
#   --delete_after                                 with --babysit: delete the TPU when the training is done
#   --poll=SECONDS         ALBERT_TPU_POLL         between two polls; default 60
#   --retries=N            ALBERT_TPU_RETRIES      retries of a failed command, and of the training; default 8
#   --backoff=SECONDS      ALBERT_TPU_BACKOFF      wait after the first failure, doubled after each; default 10
#   --preemptions=N        ALBERT_TPU_PREEMPTIONS  restarts of --babysit after preemptions; default 100
#   --dry_run                                      print the commands without running them; the commands of workers
#                                                  are shown without checks, locks and waits
#
# Exit codes: 0 success, 1 failure, 2 a mistake in the command, the quota or the training's arguments.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
COMMANDS=(create setup train status logs ssh stop delete)
# After a training has run this long, the count of failures restarts.
HEALTHY_SECONDS=3600
# Polls in a row: before a worker that does not answer costs the TPU its life, and in which all workers have to end.
PATIENCE=3
# Errors of gcloud that a retry does not solve.
HOPELESS='^ERROR: \(gcloud[^)]*\).*(PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|invalid_grant|Reauthentication|active account|unrecognized arg|[Ii]nvalid (value|choice)|[Mm]ust be specified|required property)'
# The exit code of a worker if a retry is useless; no other program here uses it.
NO_USE=64

# --- Words ---

usage() { sed -n '2,/^set /{s/^# \{0,1\}//;/^set /!p;}' "${BASH_SOURCE[0]}"; }

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }

die() {
  printf 'launch/tpu.sh: %s\n' "$2" >&2
  exit "$1"
}

# The words as one line for any shell to read again; single quotes, so that a script inside stays readable.
quote() {
  local word separator=
  for word; do
    printf '%s' "$separator"
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      printf '%s' "$word"
    else
      # shellcheck disable=SC2001 # How a quote in the replacement of ${word//} is read differs between versions of bash.
      printf "'%s'" "$(sed "s/'/'\\\\''/g" <<<"$word")"
    fi
    separator=' '
  done
}

# --- The command line ---

parse() {
  NAME=${ALBERT_TPU_NAME:-} ZONE=${ALBERT_TPU_ZONE:-} PROJECT=${ALBERT_TPU_PROJECT:-}
  ACCELERATOR=${ALBERT_TPU_ACCELERATOR:-} RUNTIME=${ALBERT_TPU_RUNTIME:-} SPOT=${ALBERT_TPU_SPOT:-0}
  REPO=${ALBERT_TPU_REPO:-} BRANCH=${ALBERT_TPU_BRANCH:-} ENV_NAMES=${ALBERT_TPU_ENV:-}
  POLL=${ALBERT_TPU_POLL:-60} RETRIES=${ALBERT_TPU_RETRIES:-8} BACKOFF=${ALBERT_TPU_BACKOFF:-10}
  PREEMPTIONS=${ALBERT_TPU_PREEMPTIONS:-100}
  WORKER='' LINES_SHOWN=100 FOLLOW=0 WAIT=1 BABYSIT=0 DELETE_AFTER=0 DRY_RUN=0
  # Arrays that may be empty are read as ${A[@]+"${A[@]}"}: before bash 4.4, which macOS has, they count as unset.
  SSH_FLAGS=() CREATE_FLAGS=() ARGUMENTS=()
  (($#)) || die 2 "no command given; there are ${COMMANDS[*]}; see launch/tpu.sh --help"
  case $1 in -h | --help | help) usage && exit 0 ;; esac
  COMMAND=$1
  [[ " ${COMMANDS[*]} " == *" $COMMAND "* ]] || die 2 "no command '$COMMAND'; there are ${COMMANDS[*]}"
  shift
  while (($#)); do
    case $1 in
      -h | --help) usage && exit 0 ;;
      --name=*) NAME=${1#*=} ;;
      --zone=*) ZONE=${1#*=} ;;
      --project=*) PROJECT=${1#*=} ;;
      --accelerator=*) ACCELERATOR=${1#*=} ;;
      --runtime=*) RUNTIME=${1#*=} ;;
      --spot) SPOT=1 ;;
      --repo=*) REPO=${1#*=} ;;
      --branch=*) BRANCH=${1#*=} ;;
      --env=*) ENV_NAMES+=",${1#*=}" ;;
      --ssh_flag=*) SSH_FLAGS+=("${1#*=}") ;;
      --create_flag=*) CREATE_FLAGS+=("${1#*=}") ;;
      --worker=*) WORKER=${1#*=} ;;
      --lines=*) LINES_SHOWN=${1#*=} ;;
      --follow) FOLLOW=1 ;;
      --no_wait) WAIT=0 ;;
      --babysit) BABYSIT=1 ;;
      --delete_after) DELETE_AFTER=1 ;;
      --poll=*) POLL=${1#*=} ;;
      --retries=*) RETRIES=${1#*=} ;;
      --backoff=*) BACKOFF=${1#*=} ;;
      --preemptions=*) PREEMPTIONS=${1#*=} ;;
      --dry_run) DRY_RUN=1 ;;
      --)
        shift
        ARGUMENTS=("$@")
        break
        ;;
      --config | --config[.=]* | --workdir*) die 2 "$1 is for the training: put it after --" ;;
      --*) die 2 "no flag '$1' (a value is given as --flag=VALUE); see launch/tpu.sh --help" ;;
      *) die 2 "'$1' is not a flag; a command takes flags, and after -- what is for the training" ;;
    esac
    shift
  done
}

check() {
  local number name
  [[ $NAME =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    die 2 "--name='$NAME': give a name of lower-case letters, digits and hyphens, as --name=albert-base"
  [[ $ZONE =~ ^[a-z0-9-]+$ ]] || die 2 "--zone='$ZONE': give the TPU's zone, as --zone=us-central2-b"
  for number in "poll=$POLL" "retries=$RETRIES" "backoff=$BACKOFF" "preemptions=$PREEMPTIONS" "lines=$LINES_SHOWN"; do
    # With a leading zero the shell would read another number, or none.
    [[ ${number#*=} =~ ^(0|[1-9][0-9]{0,8})$ ]] || die 2 "--$number is not a whole number, as 8"
  done
  ((RETRIES)) || die 2 "--retries=0: give 1 to try everything once"
  [[ $SPOT == [01] ]] || die 2 "ALBERT_TPU_SPOT='$SPOT': give 1 for a spot TPU, or 0"
  [[ $REPO != *://*:*@* && $REPO != http*://*@* ]] ||
    die 2 "--repo holds a password, which gcloud would write to its logs; leave --repo out to copy this checkout instead"
  [[ -z $BRANCH || -n $REPO ]] || die 2 "--branch=$BRANCH is of --repo, which was not given"
  BRANCH=${BRANCH:-main}
  for name in ${ENV_NAMES//,/ }; do
    [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || die 2 "--env takes a variable's name only, never its value"
    [[ -n ${!name+set} ]] || die 2 "--env=$name: your environment has no variable $name"
  done
  if [[ $COMMAND == create || $BABYSIT == 1 ]]; then check_accelerator; fi
  case $COMMAND in
    train) check_training ;;
    ssh) ;;
    *) ((${#ARGUMENTS[@]} == 0)) || die 2 "$COMMAND takes nothing after --" ;;
  esac
  [[ $BABYSIT == 0 || $COMMAND == train ]] || die 2 "--babysit is a flag of train, not of $COMMAND"
  [[ $DELETE_AFTER == 0 || $BABYSIT == 1 ]] || die 2 "--delete_after needs --babysit: without it nobody sees the end"
  ((DRY_RUN)) || command -v gcloud >/dev/null ||
    die 2 "no gcloud on PATH; install the Google Cloud CLI: https://cloud.google.com/sdk/docs/install"
}

# The image that goes with each kind of TPU: https://cloud.google.com/tpu/docs/runtimes
check_accelerator() {
  [[ -n $ACCELERATOR ]] || die 2 "no --accelerator; give one such as --accelerator=v5litepod-8"
  [[ -z $RUNTIME ]] || return 0
  case $ACCELERATOR in
    v2-* | v3-* | v4-*) RUNTIME=tpu-ubuntu2204-base ;;
    v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
    v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
    v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
    *) die 2 "--accelerator=$ACCELERATOR: no image known for it; name one by --runtime (v5e is called v5litepod)" ;;
  esac
}

check_training() {
  local argument workdir='' config=''
  for argument in ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}; do
    case $argument in
      --workdir=*) workdir=${argument#*=} ;;
      --config=*) config=$argument ;;
    esac
  done
  [[ -n $config && -n $workdir ]] ||
    die 2 "give the training's own arguments after --, as: -- --config=configs/pretrain.py:base --workdir=gs://BUCKET/RUN"
  [[ $workdir != gs://* || $workdir =~ ^gs://[^/]+/. ]] ||
    die 2 "--workdir=$workdir names no folder of a bucket; give one, as --workdir=gs://BUCKET/RUN"
  [[ $workdir == gs://* || $workdir == /mnt/* ]] ||
    say "--workdir=$workdir is neither in a bucket nor below /mnt/: unless all workers share it, it is lost with the TPU"
}

# --- gcloud: every call goes through here ---

tpus() {
  local call=(gcloud compute tpus "$@" "--zone=$ZONE")
  if [[ -n $PROJECT ]]; then call+=("--project=$PROJECT"); fi
  call+=(--quiet)
  if ((DRY_RUN)); then
    quote "${call[@]}" >&3
    echo >&3
    return 0
  fi
  "${call[@]}"
}

# Runs a command that keeps its errors in $TEMP/stderr: up to TRIES times, waiting twice as long each time. Ends the
# script with 2 if there is no point in trying again; returns the command's last exit code otherwise.
retry() {
  local what=$1 attempt code wait=$BACKOFF tries=${TRIES:-$RETRIES}
  shift
  for ((attempt = 1; ; attempt++)); do
    code=0
    : >"$TEMP/stderr"
    "$@" || code=$?
    ((code)) || return 0
    if grep -qE "$HOPELESS" "$TEMP/stderr"; then
      grep '^ERROR' "$TEMP/stderr" >&2
      die 2 "$what: refused; put right what gcloud says above"
    fi
    if ((attempt == tries || code == NO_USE)); then
      tail -n 20 "$TEMP/stderr" >&2
      say "$what: failed ($attempt of at most $tries tries)"
      return "$code"
    fi
    say "$what: $(grep . "$TEMP/stderr" | tail -n 1 || true) (try $attempt of at most $tries, again in $wait s)"
    sleep "$wait"
    wait=$((wait < 150 ? wait * 2 : 300))
  done
}

# Prints the state of the request: NONE, or WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED, FAILED and others.
queue_state() {
  local state
  if state=$(tpus queued-resources describe "$NAME" '--format=value(state.state)' 2>"$TEMP/stderr"); then
    echo "${state:-UNKNOWN}"
  else
    grep -q NOT_FOUND "$TEMP/stderr" || return 1
    echo NONE
  fi
}

# Prints the state of the TPU and its number of workers, as "READY 4"; "NONE 0" where there is none.
node_state() {
  local state
  if state=$(tpus tpu-vm describe "$NAME" '--format=value(state,networkEndpoints.len())' 2>"$TEMP/stderr"); then
    echo "${state:-UNKNOWN 0}" | tr '\t' ' '
  else
    grep -q NOT_FOUND "$TEMP/stderr" || return 1
    echo NONE 0
  fi
}

ask_for_tpu() {
  local flags=("--node-id=$NAME" "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME")
  if ((SPOT)); then flags+=(--spot); fi
  flags+=(${CREATE_FLAGS[@]+"${CREATE_FLAGS[@]}"})
  tpus queued-resources create "$NAME" "${flags[@]}" 2>"$TEMP/stderr" || grep -q ALREADY_EXISTS "$TEMP/stderr"
}

create_queued() {
  local kind='on demand'
  if ((SPOT)); then kind=spot; fi
  say "Asking for $NAME: $ACCELERATOR in $ZONE, $kind"
  retry "create" ask_for_tpu && return
  if grep -qiE 'quota|RESOURCE_EXHAUSTED' "$TEMP/stderr"; then
    die 2 "the quota for $ACCELERATOR in $ZONE is used up or was never given; see https://cloud.google.com/tpu/docs/quota"
  fi
  die 1 "gcloud did not take the request for $NAME"
}

# Deletes the request with its TPU; that there is none is fine too.
delete_queued() {
  retry "delete" delete_once || die 1 "$NAME could not be deleted; it may still cost money: launch/tpu.sh delete again"
}

delete_once() {
  tpus queued-resources delete "$NAME" --force 2>"$TEMP/stderr" || grep -q NOT_FOUND "$TEMP/stderr"
}

# Returns when the TPU is there. A request that failed or was suspended holds nothing any more: it is made anew.
await_tpu() {
  local state
  while true; do
    state=$(retry "describe" queue_state) || exit $?
    note_state "$state"
    case $state in
      ACTIVE) return 0 ;;
      NONE) create_queued ;;
      FAILED) failed "the request for $NAME failed" && delete_queued ;;
      SUSPENDED) lost && delete_queued ;;
      *) # In the queue, on its way, or on its way out.
        ((WAIT)) || return 0
        sleep "$POLL"
        ;;
    esac
  done
}

LAST_STATE=''
note_state() {
  [[ $1 == "$LAST_STATE" ]] || say "$NAME: $1"
  LAST_STATE=$1
}

# --- What runs on the workers: each function is sent as text, with worker_running and nothing else of this file ---

# Whether the training, or rather the shell that waits for it, is alive. A lock, unlike a process number, is never taken
# for another one after a reboot; a shared one here, so that two who look do not see each other.
worker_running() {
  local lock=$HOME/albert_jax/run/lock
  [[ -f $lock ]] && ! flock --shared --nonblock "$lock" true
}

worker_setup() { # $1 URL and $2 commit, or '' and the checksum of ~/albert_jax_source.tar.gz
  local home=$HOME/albert_jax url=$1 version=$2
  if [[ -f $home/ready && $(cat "$home/ready") == "$version" ]]; then
    echo "worker $(hostname): ready"
    return
  fi
  if worker_running; then
    echo "worker $(hostname): the training is running, so nothing is installed; stop it first" >&2
    return 64
  fi
  echo "worker $(hostname): installing"
  mkdir -p "$home/src" "$home/run"
  rm -f "$home/ready"
  cd "$home/src"
  if [[ -n $url ]]; then
    git init --quiet
    git fetch --quiet --depth=1 "$url" "$version"
    git reset --quiet --hard FETCH_HEAD
    git clean --quiet -fd
  else
    find . -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
    tar --extract --touch --file="$HOME/albert_jax_source.tar.gz"
  fi
  # The images have Python 3.10, or one without venv.
  export PATH="$HOME/.local/bin:$PATH" UV_PYTHON_PREFERENCE=only-managed
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh >/dev/null
  uv python install --quiet 3.12
  PYTHON=$(uv python find 3.12)
  EXTRAS=tpu,gcs
  export PYTHON EXTRAS
  # shellcheck source=launch/venv.sh
  source launch/venv.sh
  echo "$version" >"$home/ready"
  echo "worker $(hostname): ready"
}

worker_start() { # $1 number of workers, then the training's arguments
  local run=$HOME/albert_jax/run i
  # The machines do not say by themselves, in their environment, that they are parts of one.
  export ALBERT_JAX_PROCESSES=$1
  shift
  if [[ ! -f $HOME/albert_jax/ready ]]; then
    echo "worker $(hostname): not set up; run launch/tpu.sh setup first" >&2
    return 64
  fi
  if ! worker_running; then
    rm -f "$run/exit_code" "$run/stopped" "$run/pid"
    if [[ -f $HOME/albert_jax_env ]]; then install -m 600 "$HOME/albert_jax_env" "$run/env"; fi
    printf '\n=== %s albert-jax train%s\n' "$(date -u +%FT%TZ)" "$(printf ' %q' "$@")" >>"$run/log"
    cd "$HOME/albert_jax/src"
    # A session of its own outlives the connection. The inner shell holds the lock, the training does not, so the lock
    # is free when the exit code is written; then whatever the training left behind dies, and lets go of the TPU.
    # shellcheck disable=SC2016
    setsid bash -c '
      run=$1; shift
      exec 9>"$run/lock"
      flock --timeout 5 9 || exit 0
      echo $$ >"$run/group"
      if [[ -f $run/env ]]; then source "$run/env"; rm -f "$run/env"; fi
      .venv/bin/albert-jax train "$@" 9>&- &
      echo $! >"$run/pid"
      code=0; wait $! || code=$?
      echo $code >"$run/exit_code"
      kill -KILL 0' _ "$run" "$@" </dev/null >>"$run/log" 2>&1 9>&- &
    for ((i = 0; i < 100; i++)); do
      [[ ! -f $run/pid ]] || break
      sleep 0.1
    done
  fi
  rm -f "$HOME/albert_jax_env"
  echo "worker $(hostname): training"
}

worker_state() {
  local run=$HOME/albert_jax/run state=idle
  if worker_running; then
    state=running
  elif [[ -f $run/stopped ]]; then
    state=stopped
  elif [[ -f $run/exit_code ]]; then
    state=exited_$(cat "$run/exit_code")
    # Asked to stop, as by a machine that shuts down, a training saves and ends well, but is not done.
    if [[ $state == exited_0 ]]; then
      state=finished
      if awk '/^=== /{n=0} /^Stopped at step/{n=1} END{exit !n}' "$run/log"; then state=interrupted; fi
    fi
  elif [[ -f $run/pid ]]; then
    state=lost # The machine went down under it.
  fi
  echo "albert_jax $(hostname) $state"
}

worker_stop() { # $1 seconds to wait for
  local run=$HOME/albert_jax/run i
  if worker_running; then
    touch "$run/stopped"
    kill -TERM "$(cat "$run/pid")" || true
    for ((i = 0; i < $1 * 5; i++)); do
      worker_running || break
      sleep 0.2
    done
    if worker_running; then
      echo "worker $(hostname): still saving" >&2
      return 1
    fi
  fi
  echo "worker $(hostname): stopped"
}

worker_kill() {
  local i
  for ((i = 0; i < 50; i++)); do
    worker_running || return 0
    kill -KILL -- "-$(cat "$HOME/albert_jax/run/group")" || true
    sleep 0.1
  done
  return 1
}

worker_log() { # $1 lines, $2 whether to follow
  local log=$HOME/albert_jax/run/log
  if [[ ! -f $log ]]; then
    echo "worker $(hostname): no training was started" >&2
    return 64
  fi
  if (($2)); then tail -n "$1" -F "$log"; else tail -n "$1" "$log"; fi
}

# --- The workers, from here ---

# What a worker_* function comes down to, for --dry_run: without its checks, locks and waits.
# shellcheck disable=SC2016 # $(…) and ~ are the worker's.
essence() {
  local name=$1
  shift
  case $name in
    worker_setup)
      if [[ -n $1 ]]; then
        printf 'git clone %q ~/albert_jax/src\ngit -C ~/albert_jax/src checkout %q\n' "$1" "$2"
      else
        printf 'mkdir -p ~/albert_jax/src ~/albert_jax/run\n'
        printf 'tar --extract --file=albert_jax_source.tar.gz --directory=albert_jax/src\n'
      fi
      printf 'cd ~/albert_jax/src\nPYTHON=$(uv python find 3.12) EXTRAS=tpu,gcs source launch/venv.sh'
      ;;
    worker_start)
      printf 'cd ~/albert_jax/src\nexec >>~/albert_jax/run/log 2>&1\nexport ALBERT_JAX_PROCESSES=MACHINES # that the TPU has\n'
      printf 'setsid --fork .venv/bin/albert-jax train%s' "$(printf ' %q' "${@:2}")"
      ;;
    worker_state) printf 'cat ~/albert_jax/run/exit_code || pgrep -f "albert-jax train"' ;;
    worker_stop) printf 'kill -TERM $(cat ~/albert_jax/run/pid)' ;;
    worker_kill) printf 'kill -KILL -- -$(cat ~/albert_jax/run/group)' ;;
    worker_log) printf 'tail -n %s%s ~/albert_jax/run/log' "$1" "$( (($2)) && printf ' -F')" ;;
  esac
}

# A script for bash, which is the login shell there, that runs a worker_* function with arguments.
remote() {
  if ((DRY_RUN)); then
    essence "$@"
    return
  fi
  printf 'set -euo pipefail\n'
  declare -f worker_running "$1"
  printf '%q ' "$@"
}

# Runs a worker_* function: on_workers WORKERS FUNCTION ARGUMENTS…
on_workers() {
  local workers=$1
  shift
  tpus tpu-vm ssh "$NAME" "--worker=$workers" ${SSH_FLAGS[@]+"${SSH_FLAGS[@]}"} "--command=$(remote "$@")" \
    2>"$TEMP/stderr"
}

to_workers() { # Copies file $1 to $2 in each home.
  tpus tpu-vm scp "$1" "$NAME:$2" --worker=all ${SSH_FLAGS[@]+"${SSH_FLAGS[@]}"} 2>"$TEMP/stderr"
}

# What is installed stays the same for as long as this script runs, also if the checkout or the branch moves on: a run
# that goes on after a preemption has to go on with the same code.
VERSION=''
pack() {
  [[ -z $VERSION ]] || return 0
  if [[ -n $REPO ]]; then
    VERSION=$BRANCH
    if ((DRY_RUN)) || [[ $BRANCH =~ ^[0-9a-f]{40}$ ]]; then return 0; fi
    VERSION=$(git ls-remote "$REPO" "$BRANCH" | head -n 1 | cut -f 1) || die 2 "--repo=$REPO cannot be read by git"
    [[ -n $VERSION ]] || die 2 "--repo=$REPO has no branch or tag '$BRANCH'"
    return 0
  fi
  (
    cd "$ROOT"
    # Tracked files and new ones, as they are now; not what git ignores, nor what was deleted.
    if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
      git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
        if [[ -e $file || -L $file ]]; then printf '%s\0' "$file"; fi
      done
    else
      find . \( -name .venv -o -name runs -o -name .git -o -name __pycache__ \) -prune -o -type f -print0
    fi >"$TEMP/files"
    # COPYFILE_DISABLE keeps macOS from adding files of its own.
    COPYFILE_DISABLE=1 tar -c --null -T "$TEMP/files" -f "$TEMP/source.tar"
    gzip -n "$TEMP/source.tar"
  ) || die 1 "the checkout in $ROOT could not be packed"
  VERSION=$(cksum <"$TEMP/source.tar.gz" | tr ' ' -)
}

set_up() {
  pack
  if [[ -z $REPO ]]; then
    retry "copy" to_workers "$TEMP/source.tar.gz" albert_jax_source.tar.gz || return
  fi
  retry "setup" on_workers all worker_setup "$REPO" "$VERSION"
}

start_training() {
  local name
  if [[ -n ${ENV_NAMES//,/} ]]; then
    ((DRY_RUN)) || (
      umask 077
      for name in ${ENV_NAMES//,/ }; do printf 'export %s=%q\n' "$name" "${!name}"; done >"$TEMP/env"
    )
    retry "copy" to_workers "$TEMP/env" albert_jax_env || return
  fi
  retry "start" on_workers all worker_start "$WORKERS" "${ARGUMENTS[@]}"
}

# Fills STATES, a line "HOST STATE" for each of WORKERS workers; fails where one does not answer.
probe() {
  local code=0
  STATES=$(on_workers all worker_state) || code=$?
  STATES=$(sed -n 's/^albert_jax //p' <<<"$STATES")
  if ((code || $(workers_in '.*') < WORKERS)); then
    echo "$(workers_in '.*') of $WORKERS workers answered" >>"$TEMP/stderr"
    return 1
  fi
}

workers_in() { grep -cE "^[^ ]+ ($1)\$" <<<"$STATES" || true; }

# The states with their numbers, as "1 lost, 3 running".
summary() {
  cut -d ' ' -f 2 <<<"$STATES" | sort | uniq -c | awk '{ printf "%s%s %s", between, $1, $2; between = ", " }'
}

# --- Watching ---

FAILURES=0 LOSSES=0 WORKERS=1

# Notes a failure and waits, twice as long each time; ends the script when there were too many.
failed() {
  local wait=$((BACKOFF << (FAILURES < 5 ? FAILURES : 5)))
  FAILURES=$((FAILURES + 1))
  ((FAILURES <= RETRIES)) || die 1 "$1; that was failure $FAILURES, --retries=$RETRIES; giving up"
  say "$1 (failure $FAILURES of at most $RETRIES); again in $wait s"
  sleep "$wait"
}

# Notes that the TPU was taken away.
lost() {
  LOSSES=$((LOSSES + 1))
  ((LOSSES <= PREEMPTIONS)) || die 1 "$NAME was lost $LOSSES times, --preemptions=$PREEMPTIONS; giving up"
  say "$NAME was lost (time $LOSSES of at most $PREEMPTIONS); asking for it again"
}

# Looks at the workers. Sets VERDICT (wait, running, start, restart, recreate, finished, stopped or mistake) and WHY.
look() {
  local node
  WHY=''
  node=$(retry "describe" node_state) || exit $?
  WORKERS=${node#* }
  case $node in
    READY\ *) ;;
    PREEMPTED\ * | TERMINATED\ * | NONE\ *) VERDICT=recreate WHY="the TPU is ${node% *}" && return ;;
    *) VERDICT=wait WHY="the TPU is ${node% *}" && return ;;
  esac
  if ! TRIES=2 retry "status" probe; then # It may be gone by now: soon look at its state again.
    SILENT=$((SILENT + 1))
    VERDICT=wait WHY="$(workers_in '.*') of $WORKERS workers answer"
    if ((SILENT >= PATIENCE)); then VERDICT=recreate SILENT=0; fi
    return
  fi
  SILENT=0
  local running finished stopped
  running=$(workers_in running) finished=$(workers_in finished) stopped=$(workers_in stopped)
  if ((running == WORKERS)); then
    VERDICT=running
  elif ((running == 0 && OURS == 0)); then
    VERDICT=start # How an earlier training ended says nothing about this one.
  elif (($(workers_in exited_2))); then
    VERDICT=mistake
  elif ((finished == WORKERS)); then
    VERDICT=finished
  elif (($(workers_in idle) == WORKERS)); then
    VERDICT=start
  elif ((stopped && running + finished + stopped == WORKERS)); then
    VERDICT=stopped
    if ((running)); then VERDICT=wait WHY="$running of $WORKERS workers are still saving"; fi
  elif ((finished && running + finished == WORKERS && ENDING < PATIENCE)); then
    ENDING=$((ENDING + 1)) # They do not all end in the same second.
    VERDICT=wait WHY="$finished of $WORKERS workers are done"
  else
    VERDICT=restart
    WHY="the training does not run on all workers ($(summary))"
  fi
  [[ $VERDICT == wait ]] || ENDING=0
}

show_log() {
  say "The end of the log of worker $1:"
  on_workers "$1" worker_log 20 0 >&2 || true
}

babysit() {
  local started=$SECONDS said=''
  SILENT=0 ENDING=0 OURS=0 STATES=''
  if ((DRY_RUN)); then
    await_once
    set_up
    start_training
    on_workers all worker_state
    return
  fi
  trap 'say "No longer watching. The training goes on; the same command watches it again."; exit 130' INT
  while true; do
    await_tpu
    look
    [[ -z $WHY || $WHY == "$said" ]] || say "$WHY"
    said=$WHY
    case $VERDICT in
      finished)
        say "The training is done."
        if ((DELETE_AFTER)); then delete_queued; fi
        return 0
        ;;
      stopped)
        say "The training was asked to stop, and has saved. The same command after launch/tpu.sh stop goes on from there."
        return 0
        ;;
      mistake)
        show_log "$(first_worker_that exited_2)"
        retry "stop" on_workers all worker_kill || true
        die 2 "the training's arguments or data are wrong; see above"
        ;;
      recreate)
        lost
        delete_queued
        ;;
      restart | start)
        if [[ $VERDICT == restart ]]; then
          show_log 0
          failed "$WHY"
          # Those that still run wait for the ones that do not.
          retry "stop" on_workers all worker_kill || continue
        fi
        # Where it fails, the next look finds out whether the TPU is still there.
        if TRIES=2 set_up && TRIES=2 start_training; then
          say "Training on $WORKERS workers"
          OURS=1
        else
          failed "the training could not be started"
        fi
        started=$SECONDS
        ;;
      running)
        OURS=1
        if ((SECONDS - started > HEALTHY_SECONDS)); then FAILURES=0; fi
        sleep "$POLL"
        ;;
      wait) sleep "$POLL" ;;
    esac
  done
}

# The commands of a request that goes well.
await_once() {
  create_queued
  tpus queued-resources describe "$NAME" '--format=value(state.state)'
}

# The number of a worker in a state. The hosts of a slice are named …-w-0, …-w-1 and so on.
first_worker_that() {
  local host
  host=$(grep -E " $1\$" <<<"$STATES" | head -n 1 | cut -d ' ' -f 1)
  if [[ $host =~ -w-([0-9]+)$ ]]; then echo "${BASH_REMATCH[1]}"; else echo 0; fi
}

# --- Commands ---

# Ends the script unless the TPU is there; sets WORKERS.
need_tpu() {
  local node
  if ((DRY_RUN)); then return 0; fi
  node=$(retry "describe" node_state) || exit $?
  WORKERS=${node#* }
  [[ $node == READY\ * ]] ||
    die 1 "there is no TPU $NAME that is ready in $ZONE (state ${node% *}); see launch/tpu.sh status, or create"
}

create() {
  if ((DRY_RUN)); then await_once; else await_tpu; fi
}

setup() {
  need_tpu
  local code=0
  set_up || code=$?
  ((code == 0)) ||
    die "$((code == NO_USE ? 2 : 1))" "setup did not succeed on all workers; again, it does what is still to be done"
}

train() {
  local code=0
  if ((BABYSIT)); then
    babysit
    return
  fi
  need_tpu
  start_training || code=$?
  ((code == 0)) || die "$((code == NO_USE ? 2 : 1))" "the training does not run on all workers; put right what is said above"
}

status() {
  local state node
  if ((DRY_RUN)); then
    queue_state >/dev/null
    node_state >/dev/null
    on_workers all worker_state
    return
  fi
  state=$(retry "describe" queue_state) || exit $?
  echo "request   $state"
  [[ $state != NONE ]] || return 0
  node=$(retry "describe" node_state) || exit $?
  echo "TPU       ${node% *}, ${node#* } workers"
  [[ $node == READY\ * ]] || return 0
  WORKERS=${node#* } STATES=''
  retry "status" probe || true
  echo "training  $(summary)"
  sort <<<"$STATES" | awk 'NF { print "  " $1, $2 }'
  (($(workers_in '.*') == WORKERS)) || die 1 "$(workers_in '.*') of $WORKERS workers answered"
}

logs() {
  need_tpu
  # Not kept: what ssh says while a log is followed should be seen.
  tpus tpu-vm ssh "$NAME" "--worker=${WORKER:-0}" ${SSH_FLAGS[@]+"${SSH_FLAGS[@]}"} \
    "--command=$(remote worker_log "$LINES_SHOWN" "$FOLLOW")"
}

ssh_in() {
  local command=()
  case ${#ARGUMENTS[@]} in
    0) ;;
    1) command=("--command=${ARGUMENTS[0]}") ;; # One word is a line of shell, as with ssh.
    *) command=("--command=$(printf '%q ' "${ARGUMENTS[@]}")") ;;
  esac
  if [[ -z $WORKER ]]; then
    WORKER=0
    if ((${#ARGUMENTS[@]})); then WORKER=all; fi
  fi
  tpus tpu-vm ssh "$NAME" "--worker=$WORKER" ${SSH_FLAGS[@]+"${SSH_FLAGS[@]}"} ${command[@]+"${command[@]}"}
}

stop() {
  need_tpu
  retry "stop" on_workers all worker_stop 60 || die 1 "the training did not stop on all workers; see launch/tpu.sh status"
}

delete() {
  if ((DRY_RUN)); then delete_once; else delete_queued; fi
}

main() {
  parse "$@"
  check
  exec 3>&1
  TEMP=$(mktemp -d)
  trap 'rm -rf "$TEMP"' EXIT
  case $COMMAND in
    ssh) ssh_in ;;
    *) "$COMMAND" ;;
  esac
}

main "$@"
