#!/usr/bin/env bash
# Several training processes on this host, joined by jax.distributed over loopback:
#
#   launch/local.sh 2 --config experiments/speedy.py --config.workdir=runs/two
#
# Process i is told of the others by WIND_COORDINATOR, WIND_PROCESS_COUNT and WIND_PROCESS_ID and, on a host with
# GPUs, sees GPU i alone, or the i-th of CUDA_VISIBLE_DEVICES where that is set. Each line of its log starts with [i].
# When one fails or is killed, all are stopped and its exit status is this script's; the same command goes on from the
# last checkpoint. TERM or INT (Ctrl-C), to this script or to all of its process group, has the processes save and end in
# order; a second one leaves them 5 s for it. PYTHON names the interpreter, PORT the coordinator's port. Needs bash 5.1 or
# newer.
set -euo pipefail

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }

if [[ ${1:-} == --help || ${1:-} == -h ]]; then usage; exit; fi
if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  echo "launch/local.sh: the first argument is the number of processes, found '${1:-}'." >&2
  usage >&2
  exit 2
fi
count=$1
shift
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES-$(seq -s, 0 $((count - 1)))}"
if [[ ${gpus[0]:--1} != -1 ]] && ((${#gpus[@]} < count)); then # empty and -1 hide all GPUs
  echo "launch/local.sh: $count processes need as many GPUs, found CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES." >&2
  exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z ${PYTHON:-} ]]; then PYTHON=python3; [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python; fi
free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
export WIND_COORDINATOR="127.0.0.1:${PORT:-$("$PYTHON" -c "$free_port")}" WIND_PROCESS_COUNT=$count WIND_LOG_EVERY="${WIND_LOG_EVERY:-60}"

# Ctrl-C reaches all of the process group. Bash starts what is in the background with INT ignored, but not this, which
# has to outlive the last line of its process.
prefixed() {
  trap '' INT TERM
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

processes=()
loggers=()
ask() { kill -TERM "${processes[@]}" 2>/dev/null || true; }
# TERM first, so that a process may end in order; one that waits for a peer that is gone gets KILL.
stop() {
  ask
  for _ in {1..50}; do
    kill -0 "${processes[@]}" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "${processes[@]}" 2>/dev/null || true
}
trap 'trap "" INT TERM; stop' EXIT # a third signal would leave processes behind
asked=''
trap '[[ -z $asked ]] || exit 130; asked=yes; ask' INT TERM

for ((i = 0; i < count; i++)); do
  exec {log}> >(prefixed "$i")
  loggers+=($!)
  WIND_PROCESS_ID=$i CUDA_VISIBLE_DEVICES=${gpus[i]:-} "$PYTHON" -u -m wind_jax.train "$@" >&"$log" 2>&1 &
  processes+=($!)
  exec {log}>&-
done
[[ -z $asked ]] || ask # those that were not there yet

status=0
while ((${#processes[@]})); do
  ended=
  wait -n -p ended "${processes[@]}" || status=$?
  if [[ -z ${ended:-} ]]; then # a signal to this script, passed on by its trap
    status=0
    continue
  fi
  for i in "${!processes[@]}"; do
    [[ ${processes[i]} != "$ended" ]] || break
  done
  unset "processes[i]" # `wait` complains of those that it has told of
  if ((status)); then
    how="failed with status $status"
    ((status > 128)) && how="was killed by SIG$(kill -l $((status - 128)))"
    echo "launch/local.sh: process $i $how; the others are stopped. Start again to go on from the last checkpoint." >&2
    break
  fi
done
stop
wait "${loggers[@]}" 2>/dev/null || true
exit "$status"
