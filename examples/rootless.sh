#!/usr/bin/env bash
# Everything without root: make a volume, mount it, make an ext4 on the image, fill it and read it.
#
#   examples/rootless.sh                set up what is missing, then do it
#   examples/rootless.sh --installed    do it with the lukshdrfs on PATH
#
# Takes /dev/fuse, and the packages fuse3, e2fsprogs and fuse2fs.
#
# Nobody else sees what is in the mount, not even root: as long as it is there, `sudo cat vault/image` says "Permission
# denied". That changes with -o allow_other, which the administrator has to admit by the line user_allow_other in
# /etc/fuse.conf.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need fuse2fs fuse2fs
mkdir disk

say 'Who does all this:'
show id -u

say 'A volume, mounted, and an ext4 on it that belongs to us.'
make_volume 64M
mount_vault
show mkfs.ext4 -q -E root_owner="$(id -u):$(id -g)" vault/image

say 'fuse2fs mounts the file system, again without root.'
# in the foreground: it writes its last blocks after the unmount, and we have to wait for them
printf '$ fuse2fs vault/image disk -f &\n'
fuse2fs vault/image disk -f >fuse2fs.log 2>&1 &
server=$!
tries=200
until mountpoint -q disk; do
    if ((--tries == 0)) || ! kill -0 "$server" 2>/dev/null; then fail "fuse2fs: $(cat fuse2fs.log)"; fi
    sleep 0.1
done
echo 'the treasure lies under the third palm tree' >disk/note
head -c 5M /dev/urandom >disk/file
sha256sum disk/file >sum
show ls -l disk
show fusermount3 -u disk
wait "$server"

say 'debugfs reads and writes single files, without a mount.'
mkdir out
show fsck.ext4 -f -n vault/image
show debugfs -R 'dump /file out/file' vault/image 2>/dev/null
sed 's|disk/|out/|' sum | show sha256sum --check
echo 'it has been dug up' >news
show debugfs -w -R 'write news news' vault/image 2>/dev/null
unmount_vault

say 'Mounted again, and read-only: all is there.'
printf '$ lukshdrfs mount --read-only …\n'
lukshdrfs mount --read-only --header header.img --key-file key payload.img vault
for file in note news; do
    debugfs -R "cat /$file" vault/image 2>/dev/null | tee "out/$file"
done
grep -q treasure out/note || fail 'the note is not there'
grep -q dug out/news || fail 'the news are not there'
unmount_vault

say 'For others, too: only if /etc/fuse.conf says so.'
if show lukshdrfs mount -o allow_other,umask=0022 --header header.img --key-file key payload.img vault; then
    show ls -l vault
    unmount_vault
else
    echo 'It does not.'
fi

say 'Done.'
