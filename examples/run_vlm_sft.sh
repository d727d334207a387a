#!/usr/bin/env bash
# Supervised fine-tuning of a vision-language model.
#
#   bash examples/run_vlm_sft.sh [CONFIG] [hydra overrides ...]
#
# CONFIG: a name in examples/config (default custom_sft_vlm) or the path of a YAML file. Everything the run writes goes
# to logs/<time>/; the exit status is the run's. RLINF_VLM_PYTHON uses that interpreter instead of setting up .venv.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch custom_sft_vlm "$@"
