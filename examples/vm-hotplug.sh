#!/usr/bin/env bash
# A volume plugged into a virtual machine while it runs, and unplugged again (by hotplug.py, over QMP).
#
#   examples/vm-hotplug.sh                set up what is missing, then do it
#   examples/vm-hotplug.sh --installed    do it with the lukshdrfs on PATH
#
# No root needed; what guest.sh, beside this, needs. Without KVM the boot takes some ten seconds.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

make_guest

say 'A volume, mounted; and a guest that has no disk.'
make_volume 64M
mount_vault
boot '
    set -e
    echo guest: waiting for a disk
    until [ -b /dev/vda ]; do sleep 0.1; done
    mkfs.ext4 -q /dev/vda
    mount /dev/vda /mnt
    echo "the treasure lies under the third palm tree" >/mnt/note
    sync
    umount /mnt
    echo guest: written
    while [ -b /dev/vda ]; do sleep 0.1; done
    echo guest: the disk is gone
    sleep 600' -qmp unix:qmp,server=on,wait=off
wait_for 'guest: waiting for a disk'

say 'Plugged in: the guest sees the disk, makes a file system, and writes a file.'
show "$examples/hotplug.py" qmp attach plain vault/image --sector-size "$sector_size"
wait_for 'guest: written'

say 'Unplugged: QEMU has closed the image, and the guest runs on.'
show "$examples/hotplug.py" qmp detach plain
unmount_vault
wait_for 'guest: the disk is gone'
kill "$guest"
wait "$guest" || true

say 'In a new mount, the file is there, and the file system is clean.'
mount_vault
show fsck.ext4 -f -n vault/image
debugfs -R 'cat /note' vault/image 2>/dev/null | tee note
grep -q treasure note || fail 'the note is not there'
unmount_vault

say 'Done.'
