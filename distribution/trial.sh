#!/bin/sh
# trial.sh PACKAGE VERSION: the Debian package in a clean root of this machine's release, as root (`make dist-test`).
# VERSION is what `muster --version` prints here; the package's must print the same (P10.10).
#
# All of it runs in namespaces of its own, and the root is a file system in memory that exists only there: when the first
# process of the trial ends, however that comes about, the kernel ends the others and takes the mounts away. The root is
# made with the network; the package is installed and tried without.
set -eu
package=$1 version=$2
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../build/clean-root

if [ "$(id -u)" -ne 0 ]; then
    echo "a clean root is made by root: sudo make dist-test" >&2
    exit 1
fi
for command in mmdebstrap unshare ip; do
    if ! command -v "$command" >/dev/null; then
        echo "there is no $command here: apt-get install mmdebstrap util-linux iproute2" >&2
        exit 1
    fi
done

if [ "${TRIAL_IS_APART:-}" != yes ]; then
    mkdir -p "$root"
    status=0
    TRIAL_IS_APART=yes setpriv --pdeathsig KILL \
        unshare --mount --pid --fork --kill-child --mount-proc sh "$0" "$@" || status=$?
    rmdir "$root" # it is empty: what was in it has gone with its mount
    exit "$status"
fi

suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
mount -t tmpfs -o mode=755,size=2g trial "$root"
echo "a clean root of $suite, with python3 and nothing else ..."
mmdebstrap --quiet --variant=minbase --include=python3 "$suite" "$root"
mount -t proc proc "$root/proc"
cp "$package" "$root/root/package.deb"
cp "$here/trial_inside.sh" "$root/root/"
# a loopback, and no other interface
unshare --net sh -c 'ip link set lo up && exec "$@"' trial \
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
    chroot "$root" sh /root/trial_inside.sh /root/package.deb "$version"
