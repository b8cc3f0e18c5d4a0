# install.sh DIRECTORY deb|rpm OLDER NEWER SERVER: see TestInstalled. DIRECTORY is empty and goes afterwards.
kind=$2 older=$3 newer=$4 server=$5
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" none "$1/root"
cp "$older" "$1/root/older.$kind"
cp "$newer" "$1/root/newer.$kind"
cp "$server" "$1/root/server.py"
mount -t proc none "$1/root/proc"
mount --bind /dev "$1/root/dev"
mount -t tmpfs none "$1/root/run"
mount -t tmpfs none "$1/root/tmp"
ip link set lo up
chroot "$1/root" sh -eu -s "$kind" <<'END'
PATH=/usr/sbin:/usr/bin:/sbin:/bin
case $1 in
deb) install='dpkg --install' remove='dpkg --remove' purge='dpkg --purge' ;;
rpm) install='rpm --upgrade --nodeps' remove='rpm --erase --nodeps' purge=true ;; # the database knows no sh here
esac
$install /older.$1
test "$(handfast version)" = "handfast 0.0.1"
test -e /usr/lib/systemd/system/handfast.service
echo '# mine' >> /etc/handfast/handfast.yaml
handfast check --listen 127.0.0.1:8080 --workers 1 -- python3 /server.py >/dev/null
handfast run --listen 127.0.0.1:8080 --workers 1 --log-level warn -- python3 /server.py &
until handfast status --ready >/dev/null 2>&1; do kill -0 $!; done
test "$(curl -s 127.0.0.1:8080)" = "worker 0: visit 1 of 127.0.0.1"
$install /newer.$1
test "$(handfast version)" = "handfast 0.0.2-dev.20260101.0"
handfast upgrade
test "$(curl -s 127.0.0.1:8080)" = "worker 0: visit 2 of 127.0.0.1" # the same worker, of a new master
tail -n 1 /etc/handfast/handfast.yaml | grep -q mine
handfast stop
wait $!
$remove handfast
test ! -e /usr/bin/handfast
$purge handfast
END
echo done
