#!/usr/bin/env bash
# A volume with sectors of 4096 bytes, on a loop device that has the same, past the page cache.
#
#   sudo examples/sectors-4096.sh                set up what is missing, then do it
#   sudo examples/sectors-4096.sh --installed    do it with the lukshdrfs on PATH
#
# Why the size of the loop device's sectors matters:
# - What is made for one size may not be readable in another. A partition table counts in sectors; a file system with
#   blocks smaller than a sector (ext4 with 1024 bytes, xfs with its own 512-byte sectors) cannot be mounted. dm-crypt
#   shows sectors of 4096 bytes for such a volume, so data from there wants the same here, and the other way round.
# - The volume is encrypted sector by sector. A write of 512 bytes means: read 4096, decrypt, change, encrypt, write.
#   With --sector-size 4096, the kernel asks for whole sectors only.
# - With --direct-io, the data are in the page cache once and not twice (in the file system's, but not in the image's).
# Takes root and loop devices.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need_loop_devices
mkdir disk

say 'A volume: create takes sectors of 4096 bytes where the size allows.'
make_volume 64M
[[ $sector_size == 4096 ]] || fail "sectors of $sector_size bytes"
mount_vault

attach() {
    loop=$(losetup --find --show --sector-size 4096 --direct-io=on vault/image)
    printf '$ losetup --find --show --sector-size 4096 --direct-io=on vault/image\n%s\n' "$loop"
    show losetup --list --output NAME,LOG-SEC,DIO "$loop"
    [[ $(losetup --list --noheadings --output DIO "$loop") -eq 1 ]] || fail 'the kernel does without direct I/O'
}

say 'The loop device has them too,'
attach
say 'so nobody can read or write less:'
if show dd if=/dev/zero of="$loop" bs=512 count=1 oflag=direct; then fail 'half a sector was written'; fi

say 'An ext4, with files.'
show mkfs.ext4 -q "$loop"
show mount "$loop" disk
head -c 10M /dev/urandom >disk/file
sha256sum disk/file >sum
show umount disk
show losetup --detach "$loop"
unmount_vault

say 'Mounted again: the files are there, and the file system is clean.'
mount_vault
show fsck.ext4 -f -n vault/image
attach
show mount -o ro "$loop" disk
show sha256sum --check sum
show umount disk
show losetup --detach "$loop"
unmount_vault

say 'Done.'
