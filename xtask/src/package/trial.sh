#!/bin/sh
# Tries a package in a copy of this system's files that is thrown away. Runs as root in a mount namespace of its own:
# `trial.sh FOLDER PACKAGE NEWER CHECKOUT`, of which FOLDER is empty, NEWER is the same package with a later version, and
# CHECKOUT is where this tree is, which is full of the name that is looked for.
set -eu
folder=$1 package=$2 newer=$3 checkout=$4

mount --make-rprivate /
mount -t tmpfs trial "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay trial -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
root=$folder/root
for place in proc sys dev; do mount --rbind "/$place" "$root/$place"; done
cp "$package" "$root/first.deb"
cp "$newer" "$root/second.deb"
# Nobody starts services here.
rm -rf "$root/run/systemd"

say() { printf '  %s\n' "$1"; }
fail() { printf '  FAILED: %s\n' "$1" >&2; exit 1; }
inside() { chroot "$root" "$@"; }
traces() { find "$root" -xdev -iname '*llamaprobe*' -not -path "$root$checkout/*" -not -path "$root/tmp/*" 2>/dev/null |
    while read -r path; do [ -e "${path#"$root"}" ] || echo "${path#"$root"}"; done; }

# An installation of this system's own would be taken for the package's.
if inside dpkg-query -W llamaprobe >/dev/null 2>&1; then inside dpkg --purge llamaprobe >/dev/null; fi

inside dpkg -i /first.deb >"$root/dpkg" 2>&1 || { cat "$root/dpkg" >&2; fail 'dpkg'; }
inside llamaprobe --version >/dev/null
say "installed: $(inside dpkg-query -W llamaprobe)"
inside dpkg-query -W -f '${Conffiles}' llamaprobe | grep -q '^ /etc/llamaprobe/llamaprobe.toml ' || fail 'the configuration is no conffile'

# As its unit starts it.
command=$(sed -n 's/^ExecStart=//p' "$root/lib/systemd/system/llamaprobe.service")
: >"$root/out"
# No function here: `$!` has to be the agent.
LLAMAPROBE_LISTEN=127.0.0.1:0 chroot "$root" $command >"$root/out" 2>"$root/err" &
agent=$!
trap 'kill "$agent" 2>/dev/null || true' EXIT
tries=0
until url=$(sed -n 's/^listening on //p' "$root/out") && [ -n "$url" ] &&
    metrics=$(curl -sf "$url/readyz" && curl -sf "$url/metrics"); do
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || { cat "$root/err" >&2; fail 'the agent is not ready'; }
    kill -0 "$agent" 2>/dev/null || { cat "$root/err" >&2; fail 'the agent ended'; }
    sleep 0.1
done
say "started: $(printf '%s\n' "$metrics" | grep -m 1 '^llamaprobe_build_info')"
say "answers: $(printf '%s\n' "$metrics" | grep -c '^llamaprobe_') series of its own"

# What an administrator changed stays.
sed -i 's/^#log = .*/log = "warn"/' "$root/etc/llamaprobe/llamaprobe.toml"
inside dpkg -i /second.deb >/dev/null 2>&1
grep -q '^log = "warn"' "$root/etc/llamaprobe/llamaprobe.toml" || fail 'the upgrade lost a changed configuration'
curl -sf "$url/healthz" >/dev/null || fail 'the agent did not live through the upgrade'
say "upgraded: $(inside dpkg-query -W llamaprobe), the configuration as it was changed"
kill -TERM "$agent"
wait "$agent" || fail "the agent ended with $?"

inside dpkg -r llamaprobe >/dev/null 2>&1
[ ! -e "$root/usr/bin/llamaprobe" ] || fail 'the program is there after the removal'
[ -e "$root/etc/llamaprobe/llamaprobe.toml" ] || fail 'the removal took the configuration'
say 'removed: the configuration stays'
inside dpkg --purge llamaprobe >/dev/null 2>&1
left=$(traces)
[ -z "$left" ] || fail "the purge left: $left"
say 'purged: nothing is left'
