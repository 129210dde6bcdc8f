# What the examples share; sourced by them, with their own arguments.
#
# Puts lukshdrfs on PATH (with --installed, the one that is there is taken), makes a folder for all that the example
# makes ($work, the working directory), and undoes everything there when the example ends, whatever ends it: guests,
# mounts, loop devices, files.
# shellcheck shell=bash disable=SC2034

set -euo pipefail
examples=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$examples/arguments.sh"
PATH=$PATH:/usr/sbin:/sbin
if [[ -z $installed ]]; then
    bin=$("$examples/../tests/setup.sh" run)
    PATH=$bin:$PATH
fi

say() { printf '\n# %s\n' "$*"; }
show() {
    printf '$ %s\n' "$*"
    "$@"
}
fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}
# need PROGRAM PACKAGE
need() { command -v "$1" >/dev/null || fail "$1 is missing: apt-get install $2"; }
need_loop_devices() {
    if ((EUID != 0)) || [[ ! -e /dev/loop-control ]]; then fail 'loop devices take root, and /dev/loop-control'; fi
}

work=$(mktemp -d)
mounts_below_work() { awk -v below="$work/" 'index($2, below) == 1 { print $2 }' /proc/mounts | tac; }
loops_below_work() {
    losetup --list --noheadings --output NAME,BACK-FILE | awk -v below="$work/" 'index($2, below) == 1 { print $1 }'
}
before_cleanup() { :; }
cleanup() {
    set +e
    local pids path
    mapfile -t pids < <(jobs -p)
    ((${#pids[@]} == 0)) || kill -KILL "${pids[@]}" 2>/dev/null
    before_cleanup
    while read -r path; do
        [[ $path == "$work/vault" ]] || umount "$path" || fusermount3 -u -z "$path"
    done < <(mounts_below_work)
    while read -r path; do
        losetup --detach "$path"
    done < <(loops_below_work)
    while read -r path; do
        # whatever is wrong, nobody keeps the key
        lukshdrfs unmount "$path" || lukshdrfs lock "$path" || fusermount3 -u -z "$path"
    done < <(mounts_below_work)
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
# so that a signal, too, goes through the clean-up above
trap 'exit 130' INT
trap 'exit 143' TERM
cd "$work"
mkdir vault

# make_volume SIZE: quickly, for nothing of it is kept, and nobody guesses a key of 64 random bytes
make_volume() {
    (umask 077 && head -c 64 /dev/urandom >key)
    show lukshdrfs create --header header.img --key-file key --iter-time 100 --size "$1" --no-wipe payload.img
    # what data is made for sectors of one size cannot always be read in others: devices get the volume's own
    sector_size=$(lukshdrfs info --json --header header.img |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["sector_size"])')
}
mount_vault() { show lukshdrfs mount --header header.img --key-file key payload.img vault; }
unmount_vault() { show lukshdrfs unmount vault; }

# the small virtual machine of guest.sh
make_guest() {
    need qemu-system-x86_64 qemu-system-x86
    "$examples/guest.sh" setup >/dev/null
}
# boot COMMANDS [QEMU OPTION...]: in the background, its console in a file
boot() {
    printf '$ qemu-system-x86_64 … %s\n' "${*:2}"
    : >console
    "$examples/guest.sh" boot "$@" >>console 2>&1 &
    guest=$!
}
# wait_for TEXT: on the guest's console
wait_for() {
    local deadline=$((SECONDS + 60)) running=yes
    until grep -q "$1" console; do
        if [[ -z $running ]] || ((SECONDS > deadline)); then fail "the guest has not said '$1': $(cat console)"; fi
        kill -0 "$guest" 2>/dev/null || running= # what it said at last has still to be looked at
        sleep 0.1
    done
}
