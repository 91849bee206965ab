#!/bin/sh
# Boots systemd on a copy of this system's files that is thrown away, and tries the package's service under it. Runs as
# root in a mount namespace of its own: `boot.sh FOLDER PACKAGE`, of which FOLDER is empty.
set -eu
folder=$1 package=$2

mount --make-rprivate /
mount -t tmpfs trial "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay trial -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
root=$folder/root
cp "$package" "$root/trial.deb"
# Images of containers have one that forbids to start services at all.
rm -f "$root/usr/sbin/policy-rc.d"

cat >"$root/trial.sh" <<'END'
#!/bin/sh
exec >/trial.out 2>&1
say() { printf '  %s\n' "$1"; }
fail() {
    printf '  FAILED: %s\n' "$1"
    journalctl -u llamaprobe --no-pager -o cat | tail -n 20
    poweroff -f >/dev/null 2>&1
    exit 1
}
of() { systemctl show -P "$1" llamaprobe; }

# Installed is started, and started is ready: dpkg waits for it.
dpkg -i /trial.deb >/dev/null 2>/trial.err || fail "dpkg: $(cat /trial.err)"
[ "$(of ActiveState)" = active ] || fail "after the installation it is $(of ActiveState)"
[ "$(systemctl is-enabled llamaprobe)" = enabled ] || fail 'it is not enabled'
say "started by the installation: $(of Type), watchdog $(of WatchdogUSec)"
metrics=$(curl -sf http://127.0.0.1:9464/readyz && curl -sf http://127.0.0.1:9464/metrics) || fail 'no answer'
say "answers: $(echo "$metrics" | grep -c ^llamaprobe_) series of its own"
first=$(of MainPID)
say "$(grep -E '^(CapBnd|NoNewPrivs|Seccomp):' "/proc/$first/status" | tr '\t\n' ' ,')"

# What the sandbox forbids shows there.
forbidden=$(journalctl -u llamaprobe --no-pager -o cat | grep -E ' ERROR |not permitted|denied')
[ -z "$forbidden" ] || fail "it complains: $forbidden"

systemctl reload llamaprobe || fail 'reload'
[ "$(of ActiveState) $(of MainPID)" = "active $first" ] || fail 'it did not live through the reload'
say 'reloaded'

kill -STOP "$first"
tries=0
until [ "$(of MainPID)" != "$first" ] && [ "$(of ActiveState)" = active ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 90 ] || fail 'one that stands still is not replaced'
    sleep 1
done
say "stands still: replaced by the watchdog, after $(of NRestarts) restart"

dpkg -i /trial.deb >/dev/null 2>/trial.err || fail "the upgrade: $(cat /trial.err)"
[ "$(of ActiveState)" = active ] || fail "after the upgrade it is $(of ActiveState)"
say 'upgraded: runs anew'
dpkg -r llamaprobe >/dev/null || fail 'the removal'
pgrep -x llamaprobe >/dev/null && fail 'it runs after the removal'
say 'removed: ended'
dpkg --purge llamaprobe >/dev/null || fail 'the purge'
systemctl daemon-reload
[ "$(systemctl show -P LoadState llamaprobe)" = not-found ] || fail 'systemd still knows it'
left=$(find /etc /var /usr /lib/systemd -iname '*llamaprobe*' -newer /trial.sh 2>/dev/null)
[ -z "$left" ] || fail "the purge left: $left"
say 'purged: nothing is left'
echo done
poweroff -f >/dev/null 2>&1
END
chmod +x "$root/trial.sh"
cat >"$root/etc/systemd/system/trial.target" <<'END'
[Unit]
Requires=basic.target trial.service
END
cat >"$root/etc/systemd/system/trial.service" <<'END'
[Unit]
After=basic.target
[Service]
ExecStart=/trial.sh
END
: >"$root/etc/machine-id"
# A tmpfs there would hide what lies on the copy.
ln -sf /dev/null "$root/etc/systemd/system/tmp.mount"

# It may what a host may, since what is tried is the service's own sandbox.
timeout -s KILL 300 systemd-nspawn --quiet --register=no --keep-unit --directory="$root" --machine=llamaprobe-trial \
    --capability=all --system-call-filter='bpf perf_event_open mount umount2 @debug @mount @privileged' \
    --boot systemd.unit=trial.target </dev/null >"$folder/console" 2>&1 || true
[ -e "$root/trial.out" ] || { cat "$folder/console" >&2; exit 1; }
grep -vx 'done' "$root/trial.out"
grep -qx 'done' "$root/trial.out"
