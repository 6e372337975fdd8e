#!/bin/sh
# Installs what serving needs into a new virtual environment: sh deploy/install.sh TARGET, from the project's root.
# The Dockerfile runs this, and so does the test where there is no container engine.
set -eu
target=${1:?"usage: sh deploy/install.sh TARGET"}
python3 -m venv "$target"
"$target/bin/python" -m pip install --no-cache-dir --disable-pip-version-check --constraint deploy/constraints.txt .
# Compiled once here: the process that runs it may not write.
"$target/bin/python" -m compileall -q "$target/lib"
