# The code of `test_runtimes.py` for the shell: each case is a path.

json() { echo 'Content-Type: application/json' >&4 && printf '%s' "$1"; }
may() { [ -w "$1" ] && echo true || echo false; }

case $HEADRACE_EVENT in
  connect) [ "$PATH_INFO" != /closed ] || echo 'Status: 403' >&4 ;;
  message)
    text=$(cat)
    if [ "$text" = leave ]; then echo 'Socket: close 4000 bye' >&4; else echo "${text^^}"; fi
    ;;
esac
if [ -n "$HEADRACE_EVENT" ]; then exit; fi
if [ -z "$REQUEST_METHOD" ]; then cat <&3 && exit; fi

case $PATH_INFO in
  /json) json '{"a":[1,2.5,null,true],"ü":"é"}' ;;
  /text) printf 'grüß dich' ;;
  /bytes) for n in {0..255}; do printf '%b' "\\x$(printf %x "$n")"; done ;;
  /headers)
    printf '%s\n' 'Status: 201' 'X-One: 1' 'x-two: a' 'x-two: b' 'Set-Cookie: a=1; Path=/' 'Set-Cookie: b=2' >&4
    printf 'made'
    ;;
  /empty) echo 'Status: 204' >&4 ;;
  /echo)
    echo 'Content-Type: application/json' >&4
    if [ "$CONTENT_LENGTH" -le 65536 ]; then
      cat <&3
    else
      printf '{"body":"' && cat && printf '","isBase64Encoded":false,"rawQueryString":"%s"}' "$QUERY_STRING"
    fi
    ;;
  /large) head -c 3000000 /dev/zero | tr '\0' x ;;
  /pieces) echo first && sleep 1.5 && echo second ;;
  /breaks-off) echo first && sleep 0.1 && echo 'broke off' >&2 && exit 1 ;;
  /fails) echo 'no such luck' >&2 && exit 1 ;;
  /bad-status) echo 'Status: 700' >&4 ;;
  /waits) sleep 20 ;;
  /exits) exit 3 ;;
  /hogs) perl -e 'my @hoard; push @hoard, "x" x (1 << 20) while 1' ;;
  /talks) echo 'warned' >&2 && echo '<6>said' >&2 && printf 'talked' ;;
  /environment) json "[\"$GREETING\",$([ -n "$HEADRACE_SOCKET" ] && echo true || echo false)]" ;;
  /context)
    left=$((HEADRACE_DEADLINE_MS - $(date +%s%3N)))
    ok=$([ "$left" -gt 0 ] && [ "$left" -le 3000 ] && echo true || echo false)
    json "[\"$HEADRACE_INVOCATION\",\"$HEADRACE_FUNCTION\",\"$HEADRACE_VERSION\",$HEADRACE_MEMORY_MB,$ok]"
    ;;
  /orphans)
    (for _ in 1 2 3; do sleep 0.2 & done)
    sleep 0.8
    json "$(cat /proc/[0-9]*/stat 2>/dev/null | sed 's/.*) //' | grep -c '^Z')"
    ;;
  /place) json "[$(id -u),$(may /),$(may /tmp)]" ;;
esac
