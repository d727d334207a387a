#!/usr/bin/env bash
# Converts a checkpoint to a Hugging Face folder, for transformers and vLLM.
#
#   bash toolkits/ckpt_convertor/fsdp_convertor/convert_pt_to_hf.sh convertor.ckpt_path=.../global_step_100 \
#     convertor.save_path=converted model.model_path=/path/to/Qwen2.5-VL-3B-Instruct
#
# Fields: config/fsdp_model_convertor.yaml beside this file. RLINF_VLM_PYTHON uses that interpreter instead of .venv.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)

python=${RLINF_VLM_PYTHON:-}
if [ -z "$python" ]; then
  bash "$root/install.sh"
  python="$root/.venv/bin/python"
fi

export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "$python" -m toolkits.ckpt_convertor.fsdp_convertor.convert_pt_to_hf "$@"
