#!/usr/bin/env bash
# A volume as the disk of a virtual machine: what the guest has synced is there, even if the machine is killed.
#
#   examples/vm-disk.sh [CACHE [AIO]]                set up what is missing, then do it
#   examples/vm-disk.sh --installed [CACHE [AIO]]    do it with the lukshdrfs on PATH
#
# CACHE and AIO are QEMU's: none (the default) or writeback; io_uring (the default), threads or native.
# No root needed; what guest.sh, beside this, needs. Without KVM each boot takes some ten seconds.
most_arguments=2
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

cache=${1:-none} aio=${2:-io_uring}
if [[ ! $cache =~ ^(none|writeback)$ || ! $aio =~ ^(io_uring|threads|native)$ ]]; then
    echo "${0##*/}: CACHE '$cache' or AIO '$aio' is not one of those that ${0##*/} --help names" >&2
    exit 1
fi
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_guest

drive() { echo "file=$1,format=raw,if=none,id=disk,cache=$cache,aio=$aio"; }
# an older QEMU, or a kernel that does not allow it
if ! echo quit | timeout -k 1 20 qemu-system-x86_64 -machine none -nodefaults -display none -monitor stdio \
    -drive "$(drive "$(mktemp -p .)")" >/dev/null 2>&1; then
    say "QEMU cannot use aio=$aio here, so it takes threads."
    aio=threads
fi

boot_with_disk() {
    boot "$1" -drive "$(drive vault/image)" \
        -device "virtio-blk-pci,drive=disk,logical_block_size=$sector_size,physical_block_size=$sector_size"
}

say 'A volume, mounted.'
make_volume 64M
mount_vault

say 'The guest makes a file system, writes, syncs; it writes on, and is killed.'
# shellcheck disable=SC2016  # the guest expands these
boot_with_disk '
    set -e
    mkfs.ext4 -q /dev/vda
    mount /dev/vda /mnt
    cd /mnt
    for n in 1 2 3 4 5; do dd if=/dev/urandom of=file$n bs=100k count=$n 2>/dev/null; done
    sha256sum file* >sums
    sync
    echo guest: synced
    while true; do dd if=/dev/urandom of=more bs=64k count=16 2>/dev/null; done'
wait_for 'guest: synced'
show kill -KILL "$guest"
wait "$guest" 2>/dev/null || true

say 'Seen from here: after the journal has been replayed the file system is sound, and has what was synced.'
show fsck.ext4 -f -p vault/image || (($? == 1)) || fail 'the file system is damaged'
for file in sums file1 file2 file3 file4 file5; do
    debugfs -R "dump /$file $file" vault/image 2>/dev/null
done
show sha256sum --check sums

say 'The next guest finds it, too. It adds some, and shuts down.'
boot_with_disk '
    set -e
    mount /dev/vda /mnt
    cd /mnt
    sha256sum -c sums
    echo "the treasure lies under the third palm tree" >note
    cd /
    umount /mnt'
wait_for 'guest: exit status 0'
wait "$guest"
grep 'file.: OK' console
unmount_vault

say 'In a new mount, all of it is there, and the file system is clean.'
mount_vault
show fsck.ext4 -f -n vault/image
debugfs -R 'cat /note' vault/image 2>/dev/null | tee note
grep -q treasure note || fail 'the note is not there'
unmount_vault

say 'Done.'
