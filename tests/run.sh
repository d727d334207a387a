#!/usr/bin/env bash
# Sets up and runs the tests; further arguments go to pytest.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/install.sh"
bash "$root/toolkits/setup/browser.sh"
cd "$root"
exec .venv/bin/python -m pytest "$@"
