#!/usr/bin/env bash
# A payload on another host, behind nbdkit with TLS; the host crashes meanwhile, and nothing is lost.
#
#   examples/remote.sh                set up what is missing, then do it
#   examples/remote.sh --installed    do it with the lukshdrfs on PATH
#
# The other host is this one, by the name of localhost. No root needed; nbdkit, libnbd, openssl and e2fsprogs.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need nbdkit nbdkit
need openssl openssl
need debugfs e2fsprogs

say 'An authority, and certificates of it for the server and for us.'
certificate() { # NAME SUBJECT-ALTERNATIVE-NAME
    openssl req -newkey rsa:2048 -nodes -subj "/CN=$1" -keyout "pki/$1-key.pem" -out "$1.csr" 2>/dev/null
    openssl x509 -req -in "$1.csr" -CA pki/ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2 \
        -extfile <(echo "subjectAltName=DNS:$2") -out "pki/$1-cert.pem" 2>/dev/null
}
mkdir pki
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj '/CN=authority' -keyout ca-key.pem -out pki/ca-cert.pem 2>/dev/null
certificate server localhost
certificate client client.invalid

# On the other host. `cache` is here to show the worst: what is not flushed is lost when it crashes.
port=$((20000 + RANDOM % 10000))
serve() {
    nbdkit --foreground --ipaddr 127.0.0.1 --port "$port" --tls=require --tls-certificates="$work/pki" --tls-verify-peer \
        --filter=cache file disk.img cache=writeback &
    server=$!
    until (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
        kill -0 "$server" 2>/dev/null || fail 'nbdkit has ended'
        sleep 0.1
    done
}
say 'The other host serves a disk; only who has a certificate of the authority gets it.'
truncate --size 64M disk.img
serve
url="nbds://localhost:$port/?tls-certificates=$work/pki"

say 'A volume on it. Its header is here.'
(umask 077 && head -c 64 /dev/urandom >key)
show lukshdrfs create --header header.img --key-file key --iter-time 100 "$url"
show lukshdrfs mount --header header.img --key-file key "$url" vault
show mkfs.ext4 -q vault/image

say 'The host crashes while we write, and comes back: what it had acknowledged is written once more.'
seq 1000000 >numbers
debugfs -w -R 'write numbers numbers' vault/image 2>/dev/null
show kill -KILL "$server"
wait "$server" 2>/dev/null || true
serve
sync vault/image
show lukshdrfs unmount vault

say 'After the next mount it is all there.'
show kill -KILL "$server"
wait "$server" 2>/dev/null || true
serve
show lukshdrfs mount --header header.img --key-file key "$url" vault
show fsck.ext4 -f -n vault/image
debugfs -R 'dump numbers copy' vault/image 2>/dev/null
show cmp numbers copy
unmount_vault
echo 'all there'
