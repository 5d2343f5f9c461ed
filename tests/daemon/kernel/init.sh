#!/bin/busybox sh
# First process of the machine that tests/daemon/kernel.rs boots: a key server and two members with the kernel backend, each
# in a namespace of its own on one bridge. Every line that begins with @ is an answer the test compares.
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /bin
/bin/busybox --install -s /bin
rm -f /bin/ip /bin/ping
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /run
echo 1 > /proc/sys/kernel/printk
while read -r module; do insmod "/modules/$module" || echo "module $module does not load"; done < /modules/list

ip=/usr/bin/ip
$ip link add br0 type bridge
$ip addr add 10.0.0.254/24 dev br0
$ip link set br0 up
for n in 1 2; do
    $ip netns add "n$n"
    $ip link add "v$n" type veth peer name wan netns "n$n"
    $ip link set "v$n" master br0 up
    $ip -n "n$n" link set lo up
    $ip -n "n$n" link set wan up
    $ip -n "n$n" addr add "10.0.0.$n/24" dev wan
    $ip -n "n$n" addr add "2001:db8::$n/64" dev wan nodad
done
mkdir -m 700 /state
chmod 600 /etc/gdoi/psk

in1() { $ip netns exec n1 "$@"; }
# Until the command succeeds, a minute at most.
until_true() {
    for _ in $(seq 120); do
        "$@" > /dev/null 2>&1 && return 0
        sleep 0.5
    done
    return 1
}
ping_one() { in1 /usr/bin/ping -c 1 -W 1 "$1"; }

answer() { echo "@ $1: $2"; }
works() { name=$1; shift; if until_true "$@"; then answer "$name" yes; else answer "$name" no; fi; }
# How many of $3 pings to $2 are answered.
pings() { answer "$1" "$(in1 /usr/bin/ping -c "$3" -i 0.1 -W 2 $2 | sed -n 's/.* \([0-9]*\) received.*/\1/p')"; }
member() { $ip netns exec "n$1" gmd --config "/etc/gdoi/gm$1.toml" --lab > "/run/gm$1.log" 2>&1 & eval "pid$1=$!"; }
registered() { grep -q "registered" "/run/gm$1.log"; }

works "in clear before" ping_one 10.0.0.2
in1 gmd --config /etc/gdoi/gm1.toml --lab --hold
answer "held" "$(ping_one 10.0.0.2 > /dev/null 2>&1 && echo passes || echo blocked)"
gcksd --config /etc/gdoi/gcks.toml --lab > /run/gcks.log 2>&1 &
works "key server" test -S /run/gcks.sock
member 1
member 2
works "first registered" registered 1
works "second registered" registered 2
works "IPv4 by tunnel" ping_one 10.0.0.2
works "IPv6 by transport" ping_one 2001:db8::2
pings "IPv4" 10.0.0.2 20
pings "IPv6" 2001:db8::2 20
pings "longer than the MTU" "-s 2000 10.0.0.2" 5
# Two lives of a key: every packet finds a state.
pings "over rollovers" 10.0.0.2 600
answer "keys" "$(grep -c 'tek_installed' /run/gm1.log)"
# What crossed the wire was ESP: the states carried it, none of it passed in clear.
answer "states of n1 that worked" "$($ip -n n1 -s xfrm state | grep -c '[1-9][0-9]*(packets)')"
in1 gdoictl --socket /run/gm1.sock member show ipsec statistics
# Killed, then started again.
kill -9 "$pid1"
sleep 1
in1 gmd --config /etc/gdoi/gm1.toml --lab --hold
answer "held after the kill" "$(ping_one 10.0.0.2 > /dev/null 2>&1 && echo passes || echo blocked)"
answer "states after the hold" "$($ip -n n1 xfrm state | grep 'proto esp' | grep -vc 'spi 0x00000000')"
: > /run/gm1.log
member 1
works "registered again" registered 1
works "IPv4 again" ping_one 10.0.0.2
kill "$pid1" "$pid2"
wait "$pid1" "$pid2"
answer "states after the end" "$($ip -n n1 xfrm state | grep 'proto esp' | grep -vc 'spi 0x00000000')"
answer "after the end" "$(ping_one 10.0.0.2 > /dev/null 2>&1 && echo passes || echo blocked)"
for n in 1 2; do $ip netns exec "n$n" gmd --release; done
answer "policies after the release" "$($ip -n n1 xfrm policy | wc -l)"
works "in clear after" ping_one 10.0.0.2
echo "== gm1"; tail -n 30 /run/gm1.log
echo "== gm2"; tail -n 5 /run/gm2.log
echo "== gcks"; tail -n 5 /run/gcks.log
cat /proc/uptime
poweroff -f
