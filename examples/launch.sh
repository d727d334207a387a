# Sourced by run_vlm_sft.sh and run_vlm_rl.sh: how a run is started.
#
#   launch DEFAULT_CONFIG [CONFIG] [hydra overrides ...]
#
# CONFIG: a name in examples/config or the path of a YAML file. Everything the run writes goes to logs/<time>/; the exit
# status is the run's. RLINF_VLM_PYTHON uses that interpreter instead of setting up .venv.

launch() {
  local root config python log number
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  config=$1
  shift
  if [ $# -gt 0 ] && [[ "$1" != *=* ]] && [[ "$1" != [~+-]* ]]; then config=$1; shift; fi

  python=${RLINF_VLM_PYTHON:-}
  if [ -z "$python" ]; then
    bash "$root/install.sh"
    python="$root/.venv/bin/python"
  fi

  log="$root/logs/$(date +%Y%m%d-%H%M%S)"
  number=1
  until mkdir -p "$root/logs" && mkdir "$log" 2>/dev/null; do
    number=$((number + 1))
    log="${log%-run*}-run$number"
  done
  echo "logs: $log"

  export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" RLINF_VLM_DEMO="$root/.demo" PYTHONUNBUFFERED=1
  # Behind tee, standard output is no terminal: name the device, so that the progress line is still drawn there.
  if [ -t 1 ]; then export RLINF_VLM_TERMINAL=/dev/tty; fi
  # The run takes this shell's place: signals to the launcher reach it, and its exit status is the launcher's. tee
  # ignores Ctrl-C and SIGTERM, which may go to all processes of the group, so that it still writes what the run says
  # while it ends.
  exec "$python" "$root/examples/train_vlm.py" --config-path "$root/examples/config" --config-name "$config" \
    --log-path "$log" "$@" > >(trap '' TERM; exec tee -i -a "$log/run.log") 2>&1
}
