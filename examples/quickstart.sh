#!/usr/bin/env bash
# The main job, for real: a volume whose header lies apart from its data, mounted as one plaintext file.
#
#   examples/quickstart.sh                set up what is missing, then do it
#   examples/quickstart.sh --installed    do it with the lukshdrfs on PATH
#
# Works on a bare Debian or Ubuntu: what is missing is installed first (system packages with apt, everything of
# Python into a private environment). Nothing is asked, and nothing is left behind but that.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/examples/arguments.sh"
PATH=$PATH:/usr/sbin:/sbin
if [[ -z $installed ]]; then
    bin=$("$root/tests/setup.sh" run)
    PATH=$bin:$PATH
fi

say() { printf '\n# %s\n' "$*"; }
show() {
    printf '$ %s\n' "$*"
    "$@"
}

work=$(mktemp -d)
vault=$work/vault disk=$work/disk loop=
cleanup() {
    set +e
    if mountpoint -q "$disk"; then umount "$disk"; fi
    if [[ -n $loop ]]; then losetup --detach "$loop"; fi
    # whatever is wrong, nobody keeps the key
    if lukshdrfs status "$vault" >/dev/null 2>&1; then
        lukshdrfs unmount "$vault" || lukshdrfs lock "$vault" || fusermount3 -u -z "$vault"
    fi
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
# so that a signal, too, goes through the clean-up above
trap 'exit 130' INT
trap 'exit 143' TERM
cd "$work"
mkdir vault disk

may_loop_mount() { ((EUID == 0)) && [[ -e /dev/loop-control ]] && losetup --find >/dev/null 2>&1; }

say 'A key file. A passphrase works too: leave --key-file out, and it is asked for.'
(umask 077 && head -c 64 /dev/urandom >key)
show ls -l key

say 'The volume: all that tells LUKS from noise is in header.img; payload.img is the data.'
show lukshdrfs create --header header.img --key-file key --size 64M payload.img
show ls -l header.img payload.img
show lukshdrfs info --header header.img payload.img

say 'Mounted, the plaintext is one file.'
mount_vault() { show lukshdrfs mount --header header.img --key-file key payload.img vault; }
mount_vault
show ls -l vault

note='the treasure lies under the third palm tree'
if may_loop_mount; then
    # A file system made for sectors of one size cannot be read in others, so the loop device gets the volume's own.
    sector_size=$(lukshdrfs info --json --header header.img |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["sector_size"])')
    attach() {
        loop=$(losetup --find --show --sector-size "$sector_size" vault/image)
        printf '$ losetup --find --show --sector-size %s vault/image\n%s\n' "$sector_size" "$loop"
    }
    detach() {
        show losetup --detach "$loop"
        loop=
    }

    say 'An ext4 on it, through a loop device, and a file in it.'
    attach
    show mkfs.ext4 -q "$loop"
    show mount "$loop" disk
    printf '%s\n' "$note" >disk/note
    show cat disk/note
    show umount disk
    detach
    read_note() {
        attach
        show mount "$loop" disk
        found=$(cat disk/note)
        show umount disk
        detach
    }
else
    say 'Only root may mount a loop device, so e2fsprogs makes an ext4 with a file in it, and reads it.'
    printf '%s\n' "$note" >disk/note
    show mkfs.ext4 -q -F -d disk vault/image
    rm disk/note
    read_note() {
        found=$(debugfs -R 'cat /note' vault/image 2>/dev/null)
    }
fi

say 'Unmounted, everything is in the payload, and none of it can be seen there.'
show lukshdrfs unmount vault
if grep -q -a -F "$note" payload.img; then
    echo 'quickstart: the plaintext is in the payload' >&2
    exit 1
fi
if [[ $(head -c 4 payload.img) == LUKS ]]; then
    echo 'quickstart: the payload has a LUKS header' >&2
    exit 1
fi
echo 'no trace of the note, and no LUKS header'

say 'Mounted again: the file is still there.'
mount_vault
read_note
echo "$found"
[[ $found == "$note" ]] || { echo 'quickstart: that is not what was written' >&2; exit 1; }
show lukshdrfs unmount vault

say 'Without the header there is nothing to mount.'
if lukshdrfs mount --key-file key payload.img vault; then
    echo 'quickstart: it was mounted without its header' >&2
    exit 1
fi

say 'Done.'
