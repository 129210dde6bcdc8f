#!/usr/bin/env bash
# A small virtual machine for the other examples: the distribution's kernel, and an initramfs that runs one script.
#
#   examples/guest.sh setup                               make it, if it is not there yet, and print its folder
#   examples/guest.sh boot COMMANDS [QEMU OPTION...]      boot it, run COMMANDS in it (busybox sh), power off
#
#   examples/guest.sh boot 'uname -a; ls /dev/vd*' -drive file=disk.img,format=raw,if=virtio
#
# Needs qemu-system-x86, busybox-static, cpio, xz-utils (on Ubuntu zstd) and apt, and no root. The kernel package is
# downloaded and unpacked, not installed. Everything is in ~/.cache/lukshdrfs/guest, some 10 MB; remove that to get the
# newest kernel.
# The guest's console is standard output. Exit status 69: what the guest is made of cannot be had here.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
self=$(readlink -f "${BASH_SOURCE[0]}")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/lukshdrfs/guest
modules=(virtio_pci virtio_blk ext4)
work=
trap '[[ -z $work ]] || rm -rf "$work"' EXIT

unavailable() {
    echo "guest: $*" >&2
    exit 69
}

# prints the packages with the kernel, as this distribution's metapackage names them
kernel_packages() {
    local metapackage image
    for metapackage in linux-image-cloud-amd64 linux-image-virtual; do # Debian, Ubuntu
        # apt-cache fails where the distribution has no package of that name
        image=$({ apt-cache depends "$metapackage" 2>/dev/null || true; } |
            sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p')
        [[ -n $image ]] || continue
        echo "$image"
        # Ubuntu's modules have a package of their own
        { apt-cache show "${image/image/modules}" 2>/dev/null || true; } | sed -n 's/^Package: //p' | sort -u
        return
    done
}

# unpack PROGRAM PACKAGE ARGUMENT...
unpack() {
    command -v "$1" >/dev/null || unavailable "$1 is missing: apt-get install $2"
    "$1" -q -d "${@:3}"
}

# leaves the kernel and the few modules that we need in $cache/kernel
get_kernel() {
    local packages tree=$work/tree kernel=$work/kernel version base path
    mkdir -p "$work/packages" "$tree"
    mapfile -t packages < <(kernel_packages)
    download() {
        ((${#packages[@]})) || return
        # the sandbox's user could not write to our folder
        (cd "$work/packages" && apt-get -q -o APT::Sandbox::User=root download "${packages[@]}" >&2)
    }
    if ! download; then
        ((EUID == 0)) || unavailable "the kernel's package cannot be downloaded: try after 'sudo apt-get update'"
        apt-get -q update >&2 || true # lists that are missing or old
        mapfile -t packages < <(kernel_packages)
        download || unavailable "the kernel's package (linux-image-cloud-amd64) cannot be downloaded"
    fi
    for path in "$work"/packages/*.deb; do
        dpkg-deb --extract "$path" "$tree"
    done
    path=$(echo "$tree"/boot/vmlinuz-*)
    version=${path##*/vmlinuz-}
    [[ -d $tree/usr/lib/modules ]] && base=$tree/usr/lib/modules/$version || base=$tree/lib/modules/$version
    mkdir -p "$kernel/lib/modules/$version"
    cp "$path" "$kernel/vmlinuz"
    chmod a+r "$kernel/vmlinuz"
    (
        shopt -s nullglob # what is not there is built in
        cd "$base/kernel"
        cp -t "$kernel/lib/modules/$version" drivers/virtio/virtio{,_ring,_pci*}.ko* drivers/block/virtio_blk.ko* \
            fs/{ext4/ext4,jbd2/jbd2,mbcache}.ko* lib/{,crc/}{crc16,crc32c,libcrc32c}.ko* crypto/crc32c*.ko* \
            "$base"/modules.{order,builtin}
        cd "$kernel/lib/modules/$version"
        # Debian's modules are packed with the one, Ubuntu's with the other
        for path in *.ko.xz; do unpack xz xz-utils "$path"; done
        for path in *.ko.zst; do unpack zstd zstd --rm "$path"; done
    )
    busybox depmod -b "$kernel" "$version"
    rm -rf "$cache/kernel" "$cache"/kvm-*
    mv "$kernel" "$cache/kernel"
}

# copies a program with the libraries that it is linked with
copy_program() {
    local path library
    path=$(command -v "$1") || unavailable "$1 is missing: apt-get install $2"
    cp "$path" "$work/root/bin/$1"
    while read -r library; do
        mkdir -p "$work/root${library%/*}"
        cp -L "$library" "$work/root$library"
    done < <(ldd "$path" 2>/dev/null | grep -o '/[^ ]*')
}

build_initrd() {
    mkdir -p "$work/root"/{bin,dev,mnt,proc,sys}
    copy_program busybox busybox-static
    copy_program mke2fs e2fsprogs # busybox's own makes nothing but ext2
    cp -r "$cache/kernel/lib" "$work/root/"
    # The kernel hands what it does not know on its command line to /init as variables: here, `run`.
    cat >"$work/root/init" <<END
#!/bin/busybox sh
export PATH=/usr/bin:/bin
mkdir -p /usr/bin /sbin
/bin/busybox --install -s /usr/bin
ln -s /bin/mke2fs /usr/bin/mkfs.ext4
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
modprobe -q -a ${modules[*]}
echo "\$run" | base64 -d >/run.sh
sh /run.sh
echo "guest: exit status \$?"
poweroff -f
END
    chmod +x "$work/root/init"
    (cd "$work/root" && find . | cpio --quiet -o -H newc -R 0:0) | gzip -1 >"$work/initrd"
    mv "$work/initrd" "$cache/initrd"
}

setup() {
    local tool
    [[ $(uname -m) == x86_64 ]] || unavailable 'this guest is one for x86-64'
    for tool in qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio apt-get:apt; do
        command -v "${tool%:*}" >/dev/null || unavailable "${tool%:*} is missing: apt-get install ${tool#*:}"
    done
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
    work=$(mktemp -d "$cache/new.XXXXXX")
    [[ -e $cache/kernel ]] || get_kernel
    [[ $cache/initrd -nt $self && $cache/initrd -nt $cache/kernel/vmlinuz ]] || build_initrd
    [[ ! -w /dev/kvm || -e $(kvm_answer) ]] || try_kvm
    rm -rf "$work"
    work=
    exec 9>&-
}

kvm_answer() { echo "$cache/kvm-$(</proc/sys/kernel/random/boot_id)"; }

# There are machines with a /dev/kvm that cannot boot a stock kernel: so it is tried, once until this machine restarts.
try_kvm() {
    rm -f "$cache"/kvm-*
    local command answer=tcg
    set_command kvm 'echo guest: it runs'
    # read to its end: grep -q would stop at the first line, and leave QEMU with a broken pipe
    if timeout -k 1 10 "${command[@]}" </dev/null 2>&1 | grep 'guest: it runs' >/dev/null; then answer=kvm; fi
    echo "$answer" >"$(kvm_answer)"
}

# set_command ACCELERATOR COMMANDS
set_command() {
    command=(
        qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none -serial stdio
        -machine pc -accel "$1" -m 256 -kernel "$cache/kernel/vmlinuz" -initrd "$cache/initrd"
        -append "console=ttyS0 quiet panic=-1 run=$(base64 -w 0 <<<"$2")"
    )
}

boot() {
    local accelerator=tcg commands=$1 command
    shift
    setup
    if [[ -w /dev/kvm ]]; then accelerator=$(<"$(kvm_answer)"); fi
    set_command "$accelerator" "$commands"
    # whatever ends the one who started this ends the machine, too
    exec setpriv --pdeathsig KILL "${command[@]}" "$@" </dev/null
}

case ${1:-} in
    setup)
        setup
        echo "$cache"
        ;;
    boot)
        shift
        boot "$@"
        ;;
    -h | --help) sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$self" ;;
    *)
        echo 'usage: guest.sh setup | boot COMMANDS [QEMU OPTION...]' >&2
        exit 1
        ;;
esac
