#!/usr/bin/env bash
# Sets up what the program needs on a bare Debian or Ubuntu, and prints the directory with the program in it.
#
#   setup.sh [--venv DIR] run      what it takes to build and run lukshdrfs
#   setup.sh [--venv DIR] test     that, and everything the tests use
#
# System packages come from apt, only those that are missing (with sudo where we are not root). Everything of
# Python goes into a private virtual environment, .venv in the project unless told; the system's Python stays as it is.
# The package is built and installed as users get it, not linked to the sources: what is tested is what ships.
# With CI=true, what the tests need of Python is what tests/requirements.txt says, file by file.
set -euo pipefail

if [[ " $* " =~ \ (-h|--help)\  ]]; then
    sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0"
    exit
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
if [[ ${1:-} == --venv ]]; then
    venv=$2
    shift 2
fi

packages=(python3-venv python3-dev gcc pkg-config libfuse3-dev fuse3 libssl-dev libgcrypt20-dev)
extras=
case ${1:-} in
    run) packages+=(e2fsprogs mount libkeyutils1) ;;
    test)
        packages+=(cryptsetup-bin qemu-utils qemu-system-x86 fio e2fsprogs mount strace util-linux libkeyutils1
            systemd man-db zsh fish)
        # for the examples: partitions, LVM, an ordinary user's file systems, a guest (Debian packs its kernel's modules
        # with xz, Ubuntu with zstd), and libvirt's schemas
        packages+=(fdisk xfsprogs lvm2 fuse2fs busybox-static cpio xz-utils zstd libvirt-clients libxml2-utils)
        # servers for payloads that are elsewhere
        packages+=(nbdkit libnbd0 openssl openssh-server)
        extras='[test]'
        ;;
    *)
        echo "usage: setup.sh [--venv DIR] run|test" >&2
        exit 1
        ;;
esac

as_root=()
((EUID == 0)) || as_root=(sudo)

say() { echo "setup: $*" >&2; }

install_system_packages() {
    local missing=() package
    for package in "${packages[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    if ((${#as_root[@]})) && ! command -v sudo >/dev/null; then
        say "these packages are missing, and there is no sudo; as root: apt-get install ${missing[*]}"
        exit 1
    fi
    say "installing ${missing[*]}"
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y)
    "${apt[@]}" update >&2
    "${apt[@]}" install --no-install-recommends "${missing[@]}" >&2
}

# fusermount3 ends no ordinary user's mount without /etc/mtab, which systemd makes at every start; where none ever ran
# (containers, chroots) it may be missing.
make_mount_table() {
    [[ -e /etc/mtab || ! -e /proc/self/mounts ]] && return
    say 'making /etc/mtab, a link to the list of mounts in /proc, as systemd does'
    "${as_root[@]}" ln -sf ../proc/self/mounts /etc/mtab || say 'without it, only root can unmount'
}

# A Python newer than the system's, first on PATH, has its own headers and its own venv module.
install_python_packages() {
    local python=$venv/bin/python
    [[ -x $python ]] || python3 -m venv "$venv"
    say "building and installing lukshdrfs into $venv"
    rm -rf "$root/build" # setuptools would put what an earlier build left there into the wheel
    local pip=("$python" -m pip --quiet --quiet --disable-pip-version-check --no-input)
    if [[ -n $extras && ${CI:-} == true ]]; then
        "${pip[@]}" install --require-hashes -r "$root/tests/requirements.txt"
        "${pip[@]}" install --no-deps --no-build-isolation "$root"
        "${pip[@]}" check
    else
        "${pip[@]}" install "$root$extras"
    fi
}

install_system_packages
make_mount_table
install_python_packages
echo "$venv/bin"
