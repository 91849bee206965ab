#!/bin/sh
# Runs the program of an unpacked image with nothing else there but the file systems that a container's runtime mounts. As
# root in a mount namespace of its own: `image.sh FOLDER PROGRAM`.
set -eu
folder=$1 program=$2

mount --make-rprivate /
# The root of a container is a mount of its own.
mount --bind "$folder" "$folder"
for place in proc sys dev; do
    mkdir -p "$folder/$place"
    mount --rbind "/$place" "$folder/$place"
done
printf '  %s\n' "$(chroot "$folder" "$program" --version)"
: >"$folder/out"
chroot "$folder" "$program" run --listen 127.0.0.1:0 >"$folder/out" 2>"$folder/err" &
agent=$!
trap 'kill "$agent" 2>/dev/null || true' EXIT
tries=0
until url=$(sed -n 's/^listening on //p' "$folder/out") && [ -n "$url" ] &&
    metrics=$(curl -sf "$url/readyz" && curl -sf "$url/metrics"); do
    tries=$((tries + 1))
    { [ "$tries" -lt 300 ] && kill -0 "$agent"; } || { head -n 20 "$folder/err" >&2; exit 1; }
    sleep 0.1
done
printf '  answers: %s series of its own\n' "$(printf '%s\n' "$metrics" | grep -c '^llamaprobe_')"
kill -TERM "$agent"
wait "$agent"
