#!/usr/bin/env bash
# A volume with a partition table: ext4 on one partition, xfs on another, LVM on a third; all of it undone, and found
# again in a second mount.
#
#   sudo examples/partitions.sh                set up what is missing, then do it
#   sudo examples/partitions.sh --installed    do it with the lukshdrfs on PATH
#
# Takes root, loop devices, and the packages fdisk and xfsprogs. LVM takes the package lvm2 and a kernel with
# device-mapper; without that, that part is left out, and said so.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need_loop_devices
need sfdisk fdisk
need mkfs.xfs xfsprogs

has_device_mapper() { [[ -e /dev/mapper/control ]] && dmsetup version >/dev/null 2>&1; }
group=lukshdrfs_example_$$
lvm=
if has_device_mapper; then
    need vgcreate lvm2
    lvm=yes
    [[ -S /run/udev/control ]] || export DM_DISABLE_UDEV=1 # nobody makes the nodes but LVM itself
fi
before_cleanup() { [[ -z $lvm ]] || vgchange -q -q --activate n "$group" 2>/dev/null; }

# The partition table counts in sectors: it is where it should be only if all see sectors of the same size.
attach() {
    loop=$(losetup --find --show --partscan --sector-size "$sector_size" vault/image)
    printf '$ losetup --find --show --partscan --sector-size %s vault/image\n%s\n' "$sector_size" "$loop"
}
see_partitions() {
    local tries=20
    until [[ -b ${loop}p3 ]] || ((--tries == 0)); do sleep 0.1; done
    # a kernel may be built without GPT: then partx reads the table and tells it
    [[ -b ${loop}p3 ]] || show partx --add "$loop"
}
# undo all below the image; a device-mapper device holds the loop device, so it goes first
detach() {
    if [[ -n $lvm ]]; then show vgchange -q --activate n "$group"; fi
    show losetup --detach "$loop"
}

say 'A volume, and a partition table on it.'
make_volume 512M
mount_vault
attach
show sfdisk --quiet "$loop" <<'END'
label: gpt
size=64M, name=ext4
size=320M, name=xfs
name=lvm, type=lvm
END
see_partitions
show sfdisk --list "$loop"

say 'A file system on each.'
devices=("${loop}p1" "${loop}p2")
kinds=(ext4 xfs)
show mkfs.ext4 -q "${loop}p1"
show mkfs.xfs -q -K "${loop}p2"
if [[ -n $lvm ]]; then
    show pvcreate -q "${loop}p3"
    show vgcreate -q "$group" "${loop}p3"
    show lvcreate -q --wipesignatures n --extents 100%FREE --name plain "$group"
    show mkfs.ext4 -q "/dev/$group/plain"
    devices+=("/dev/$group/plain")
    kinds+=(ext4)
else
    say 'This kernel has no device-mapper (/dev/mapper/control does not answer), so there is no LVM on the third.'
fi

say 'Files on all of them.'
mkdir disk
for number in "${!devices[@]}"; do
    show mount -t "${kinds[number]}" "${devices[number]}" disk
    head -c 1M /dev/urandom >disk/file
    sha256sum disk/file >"sum$number"
    show umount disk
done
detach
unmount_vault

say 'Mounted again: the partitions are found, and the files in them.'
mount_vault
attach
see_partitions
devices=("${loop}p1" "${loop}p2" "${devices[@]:2}")
if [[ -n $lvm ]]; then show vgchange -q --activate y "$group"; fi
show fsck.ext4 -f -n "${loop}p1"
show xfs_repair -n "${loop}p2" 2>/dev/null
for number in "${!devices[@]}"; do
    show mount -t "${kinds[number]}" -o ro "${devices[number]}" disk
    show sha256sum --check "sum$number"
    show umount disk
done
detach
unmount_vault

say 'Done.'
