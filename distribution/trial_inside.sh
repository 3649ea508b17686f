#!/bin/sh
# trial_inside.sh PACKAGE VERSION: what `trial.sh` does in the clean root. Ends with a status other than 0, and says at
# what, as soon as something is not as it should be.
set -eu
package=$1 version=$2
home=/var/lib/muster

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

files() { # everything but what package managers and `groupadd` write about themselves, and what is on no disk
    find / -xdev \( -path /proc -o -path /root -o -path /tmp -o -path /var/lib/dpkg -o -path /var/log -o -path /dev \
        -o -path /var/cache \) -prune -o -name __pycache__ -prune -o \
        ! -path '/etc/*group-' ! -path '/etc/*shadow-' ! -path /etc/.pwd.lock -print | sort
}

echo "this machine has no network and no compiler"
for command in cc gcc make pip pip3 git; do
    ! command -v "$command" >/dev/null || fail "there is a $command here"
done
interfaces=$(sed -n 's/^ *\([^ ]*\):.*/\1/p' /proc/net/dev)
[ "$interfaces" = lo ] || fail "there are interfaces: $interfaces"
[ ! -e "$home" ] || fail "there is a $home already"
files >/root/before

echo "install $(dpkg-deb --field "$package" Package Version Depends | tr '\n' ' ')"
dpkg --install "$package" >/root/log 2>&1 || { cat /root/log; fail "it cannot be installed"; }
dpkg --verify muster-cluster
[ "$(muster --version)" = "$version" ] || fail "muster --version says $(muster --version), and not $version"
[ "${version##* }" = "$(dpkg-query --show --showformat='${Version}' muster-cluster | tr -d '~')" ] ||
    fail "the package is of another version than its program: $version"
musterd --help >/dev/null
[ -e /usr/share/man/man8/musterd.8.gz ] || fail "musterd has no manual page"
[ -e /usr/share/bash-completion/completions/muster ] || fail "there is no completion"
[ -s /usr/share/doc/muster-cluster/copyright ] || fail "there is no copyright file"
[ -z "$(find /usr/lib/muster \( -perm /022 -o ! -user root -o ! -group root \) ! -type l)" ] ||
    fail "there are files that others may write: $(find /usr/lib/muster -perm /022 ! -type l)"
[ ! -e "$home" ] || fail "the package makes a node by itself"
for module in pip pytest mypy ruff hypothesis xdist importlinter setuptools; do
    ! /usr/lib/muster/bin/python -c "import $module" 2>/dev/null || fail "there is a $module, which only developers need"
done

echo "muster demo"
muster demo --pace 0 || fail "muster demo ended with status $?"
left=$(grep -l -a -F /usr/lib/muster/ /proc/[0-9]*/cmdline 2>/dev/null || true)
[ -z "$left" ] || fail "it leaves processes behind: $left"
/usr/lib/muster/bin/python -c 'import muster; assert muster.__file__.startswith("/usr/lib/muster/"), muster.__file__'
[ -z "$(dpkg --verify muster-cluster)" ] || fail "running it has changed its files"

echo "this machine becomes a node, and the package is installed again"
muster install --store /srv/store --node n0 --yes
unit=/usr/local/lib/systemd/system/musterd.service
grep -q '^ExecStart=/usr/bin/musterd --store /srv/store --node n0 ' $unit || fail "the unit: $(cat $unit)"
[ ! -e /usr/local/bin/muster ] || fail "muster install makes anew what the package has brought"
echo "a key" >$home/key.pem
dpkg --install "$package" >/root/log 2>&1 || { cat /root/log; fail "it cannot be installed again"; }
[ -e $unit ] || fail "a package that is installed again takes the node's unit away"

echo "a node that cannot be stopped keeps its programs"
[ ! -e /usr/bin/systemctl ] || fail "there is a systemd here, and it would be replaced"
mkdir -p /run/systemd/system
cat >/usr/bin/systemctl <<'END'
#!/bin/sh
# stands for systemd: notes what it is asked
echo "$*" >>/root/asked
case $1 in
    stop) [ ! -e /root/refuses ] ;;
    show) echo loaded ;;
esac
END
chmod 755 /usr/bin/systemctl
touch /root/refuses
! dpkg --remove muster-cluster >/root/log 2>&1 || fail "it is removed, and its node runs"
muster --version >/dev/null || fail "its node runs, and its programs have gone"
[ -e $unit ] || fail "its node runs, and its unit has gone"

echo "remove and purge"
rm /root/refuses /root/asked
dpkg --remove muster-cluster
[ "$(head -n 1 /root/asked)" = "stop musterd.service" ] || fail "the node was not stopped first: $(cat /root/asked)"
rm /usr/bin/systemctl
rmdir -p --ignore-fail-on-non-empty /run/systemd/system
[ ! -e $unit ] || fail "the unit of a program that has gone is still there"
dpkg --purge muster-cluster >/root/log 2>&1 || { cat /root/log; fail "it cannot be purged"; }
[ "$(cat $home/key.pem)" = "a key" ] || fail "the node's home was touched"
files >/root/after
left=$(comm -13 /root/before /root/after | grep -v -x -e "$home" -e "$home/key.pem" -e '/usr/local/.*' || true)
[ -z "$left" ] || fail "it leaves behind: $left"
lost=$(comm -23 /root/before /root/after)
[ -z "$lost" ] || fail "it takes away what is not its own: $lost"
left=$(find /usr/local -type f -o -type l | grep -i -e muster || true)
[ -z "$left" ] || fail "it leaves behind: $left"
echo "installed, tried, removed: $version"
