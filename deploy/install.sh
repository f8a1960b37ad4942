#!/bin/sh
# Finds a Python 3.11 and runs deploy/install.py with it.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
is_right='import sys; sys.exit(sys.version_info[:2] != (3, 11))'

for python in ${PYTHON:-} python3.11 python3 python; do
    if "$python" -c "$is_right" >/dev/null 2>&1; then
        exec "$python" "$root/deploy/install.py" "$@"
    fi
done

found=$(python3 --version 2>/dev/null || echo "no python3 at all")
cat >&2 <<MESSAGE
tidemill needs Python 3.11, and here is $found.
  Debian 12:     apt-get install python3.11
  anywhere:      uv python install 3.11     (https://docs.astral.sh/uv)
  and if it is not on the PATH:  make PYTHON=/path/to/python3.11 …
MESSAGE
exit 1
