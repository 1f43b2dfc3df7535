#!/bin/sh
# Starts the shim. As process 1 of a container the shell stays in front of it: it waits for whatever a function leaves
# behind and passes signals on, for a tenth of the memory that a second interpreter would take.
#
# -I: nothing of the environment or the user's site reaches the interpreter; -B: the root is read-only, no bytecode;
# -u: the last words before a crash are not lost in a buffer.
set -- python3 -I -B -u "$(dirname "$0")/headrace_shim"
unset PWD OLDPWD # the shell's own
[ $$ -eq 1 ] || exec "$@"
"$@" </dev/null &
shim=$!
trap 'kill -TERM $shim' TERM INT
while true; do
  wait $shim
  code=$?
  kill -0 $shim 2>/dev/null || exit $code
done
