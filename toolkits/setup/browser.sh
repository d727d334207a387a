#!/usr/bin/env bash
# Chromium, for the test that looks at the report of a run as a person would. Idempotent: does nothing where there is one.
#
#   bash toolkits/setup/browser.sh
#
# Installs it with apt as root on Debian and its like. Where it cannot, it says so; that test then fails.
set -euo pipefail
for name in chromium chromium-browser google-chrome google-chrome-stable; do
  if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "browser.sh: installing chromium (a minute, once)"
  export DEBIAN_FRONTEND=noninteractive
  if apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; then exit 0; fi
fi
echo "browser.sh: there is no chromium, and none could be installed; install one, or tests/e2e/test_report_page.py fails" >&2
