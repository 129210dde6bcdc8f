#!/usr/bin/env bash
# Runs everything that CI runs, from a bare Debian or Ubuntu with git and python3.
#
#   run.sh [--fast] [ARGUMENTS FOR PYTEST]
#
# --fast           only what needs neither a mount nor another program
# CI=true          what a test needs and does not find is a failure, not a skip
# LUKSHDRFS_TOOLS  a directory with programs that not every release has ready: dmcrypt-vm (runs commands beside a
#                  kernel's dm-crypt) and qemu10 (prints the bin/ of QEMU 9 or newer; Debian 13's own is). Or name them
#                  one by one:
# LUKSHDRFS_DMCRYPT_VM, LUKSHDRFS_QEMU10
# LUKSHDRFS_TEST_PROCESSES  how many files of tests run at a time (2); 0 for one process, as --pdb wants it
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

pytest_arguments=()
if [[ ${1:-} == --fast ]]; then
    shift
    pytest_arguments+=(-m 'not needs and not root')
fi
pytest_arguments+=("$@")

bin=$(tests/setup.sh test)

# after the system's packages, which they build upon
if [[ -n ${LUKSHDRFS_TOOLS:-} ]]; then
    tool=$LUKSHDRFS_TOOLS/dmcrypt-vm
    if [[ -z ${LUKSHDRFS_DMCRYPT_VM:-} && -x $tool ]] && { "$tool" check || "$tool" setup; } >&2; then
        export LUKSHDRFS_DMCRYPT_VM=$tool
    fi
    tool=$LUKSHDRFS_TOOLS/qemu10
    if [[ -z ${LUKSHDRFS_QEMU10:-} && -x $tool ]] && found=$("$tool"); then
        export LUKSHDRFS_QEMU10=$found
    fi
fi

step() {
    echo "== $*" >&2
    "$@"
}
step "$bin/ruff" check --quiet .
step "$bin/ruff" format --check --quiet .
step "$bin/mypy"
step "$bin/lint-imports"
# never `python -m pytest`: that would import the sources beside it, which have no compiled module
step "$bin/pytest" --numprocesses "${LUKSHDRFS_TEST_PROCESSES:-2}" --dist loadfile "${pytest_arguments[@]}"
