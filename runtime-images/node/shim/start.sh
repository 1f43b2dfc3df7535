#!/bin/sh
# Starts the shim. As process 1 of a container the shell stays in front of it and does what node does not: it waits for
# whatever a function leaves behind, and passes signals on.
#
# The sandbox bounds memory, not V8: a waiting instance does not know yet how much its version may use, and V8 can't be
# told later. Without a bound of its own it would let garbage grow past the sandbox's, so it starts small and grows in
# small steps, a third of what lives; `load.js` makes the steps larger where there is room.
here=$(dirname "$0")
set -- node --max-old-space-size=65536 --initial-old-space-size=24 --heap-growing-percent=30 --max-semi-space-size=4 \
  "$here/main.js"
[ $$ -eq 1 ] || exec "$@"
"$@" </dev/null &
shim=$!
trap 'kill -TERM $shim' TERM INT
while true; do
  wait $shim
  code=$?
  kill -0 $shim 2>/dev/null || exit $code
done
