#!/usr/bin/env bash
# Reinforcement learning of a vision-language model on problems whose answers are graded.
#
#   bash examples/run_vlm_rl.sh [CONFIG] [hydra overrides ...]
#
# CONFIG: a name in examples/config (default geometry_grpo, the demo; geo3k_grpo_multi_turn is that of several turns: the
# first run of either also makes the data and trains the small model that it starts from, a few minutes) or the path of a
# YAML file. Everything the run writes goes to logs/<time>/; the exit status is the run's. RLINF_VLM_PYTHON uses that
# interpreter instead of setting up .venv.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch geometry_grpo "$@"
