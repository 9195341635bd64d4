#!/usr/bin/env bash
# Training on a slice of TPU VMs, from this machine, with gcloud:
#
#   launch/tpu.sh [--dry-run] ACTION --name NAME --zone ZONE [options] [-- training arguments]
#
# ACTION   create    ask for the slice and wait until it is there
#          copy      send this checkout's committed files to all workers
#          install   Python 3.12 and the package on all workers
#          run       start training on all workers, in the background
#          logs      follow the log of worker 0 (--worker to choose another)
#          stop      have training save and end on all workers
#          delete    give the slice back
#          all       create, copy, install, run, logs
# --name NAME, --zone ZONE                            always needed
# --type TYPE (v5litepod-32), --version VERSION (v2-alpha-tpuv5-lite)       what to create; --spot for spot capacity
# --project PROJECT                                   if it is not gcloud's default
# --dry-run                                           print every command, run none
# After --: arguments of wind_jax.train, for instance
#
#   launch/tpu.sh all --name wind --zone us-west4-a -- --config experiments/era5_1p5deg.py \
#     --config.workdir=gs://bucket/era5
#
# Runs are resumed from the last checkpoint of their workdir, which must be in a bucket or on a shared disk, so `run`
# after a preemption goes on where it was.
set -euo pipefail

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }
fail() { echo "launch/tpu.sh: $1" >&2; exit 2; }

dry_run='' action='' name='' zone='' type=v5litepod-32 version=v2-alpha-tpuv5-lite worker=0
flags=() spot=()
while (($#)); do
  case $1 in
    --help | -h) usage; exit ;;
    --dry-run) dry_run=yes ;;
    --spot) spot=(--spot) ;;
    --name | --zone | --type | --version | --project | --worker)
      (($# > 1)) || fail "$1 needs a value."
      case $1 in
        --project) flags+=("--project=$2") ;;
        *) printf -v "${1#--}" %s "$2" ;;
      esac
      shift
      ;;
    --) shift; break ;;
    -*) fail "unknown option '$1'; --help lists them." ;;
    *) [[ -z $action ]] || fail "one action, found '$action' and '$1'."; action=$1 ;;
  esac
  shift
done
[[ -n $action ]] || fail "no action; --help lists them."
[[ -n $name && -n $zone ]] || fail "--name and --zone are needed."
flags+=("--zone=$zone")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Prints a command so that it can be pasted, then runs it unless this is a dry run.
do_or_say() {
  printf '%s' "+ $1" >&2
  printf ' %q' "${@:2}" >&2
  echo >&2
  [[ -n $dry_run ]] || "$@"
}
gcloud_tpus() { do_or_say gcloud compute tpus "$@" "${flags[@]}"; }
on_all() { gcloud_tpus tpu-vm ssh "$name" --worker=all --command="$1"; }

create() {
  gcloud_tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$version" "${spot[@]}"
  local state='' failures=0
  until [[ $state == ACTIVE ]]; do
    [[ -z $state ]] || sleep 30
    if state=$(gcloud_tpus queued-resources describe "$name" --format='value(state.state)'); then
      failures=0
    else
      ((++failures < 10)) || fail "gcloud could not describe $name $failures times in a row."
    fi
    [[ -z $dry_run ]] || return 0
    echo "$name is ${state:=UNKNOWN}" >&2
    [[ $state != FAILED && $state != SUSPENDED ]] || fail "the request for $name is $state; delete it and ask again."
  done
}
copy() {
  local archive
  archive=$(mktemp -d)/wind_jax.tar.gz
  do_or_say git archive --output="$archive" HEAD
  gcloud_tpus tpu-vm scp "$archive" "$name:wind_jax.tar.gz" --worker=all
  rm -rf "$(dirname "$archive")"
  on_all 'mkdir -p wind_jax && tar -xzf wind_jax.tar.gz -C wind_jax'
}
install() {
  # The image's own Python may be older than 3.11, so uv brings one.
  on_all 'python3 -m pip install --quiet --user uv && cd wind_jax && python3 -m uv venv --allow-existing --python 3.12 && python3 -m uv pip install --quiet --editable ".[tpu,gcs]"'
}
run() {
  (($#)) || fail "'$action' needs the training arguments after --."
  local arguments alive='pgrep -F train.pid -f wind_jax.train > /dev/null 2>&1'
  printf -v arguments ' %q' "$@"
  on_all "cd wind_jax && if $alive; then echo 'training runs here already; stop it first' >&2; exit 1; fi && { WIND_COORDINATOR=auto WIND_LOG_EVERY=60 nohup setsid .venv/bin/python -u -m wind_jax.train$arguments >> train.log 2>&1 < /dev/null & echo \$! > train.pid; }"
}
logs() { gcloud_tpus tpu-vm ssh "$name" --worker="$worker" --command='tail -n 100 -F wind_jax/train.log'; }
# shellcheck disable=SC2016  # expanded by the worker's shell
stop() { on_all 'kill -TERM "$(cat wind_jax/train.pid)" || true'; }
delete() { gcloud_tpus queued-resources delete "$name" --force --quiet; }

case $action in
  create | copy | install | logs | stop | delete) "$action" ;;
  run) run "$@" ;;
  all) create; copy; install; run "$@"; logs ;;
  *) fail "unknown action '$action'; --help lists them." ;;
esac
