# The code of `cases.json` for the shell. Values are text here: a script says the type of what is none.

json() { printf 'Content-Type: application/json\n' >&4 && printf '%s' "$1"; }
head() { printf '%b\n' "$@" >&4; }
later() { sleep 0.1; } # longer than what is written in one moment

if [ -z "$REQUEST_METHOD" ]; then
  case $(cat <&3) in
    *'"case":"text"'*) printf 'grüß dich' ;;
    *'"case":"explicit"'*) printf '{"statusCode":201,"body":"x"}' ;;
    *) cat /dev/fd/3 ;;
  esac
  exit
fi

case $PATH_INFO in
  /object) json '{"a":[1,2.5,null,true],"ü":"é"}' ;;
  /list) json '[1,"two"]' ;;
  /number) json 7 ;;
  /nothing) ;;
  /text) printf 'grüß dich' ;;
  /bytes) printf '\0\1\377' ;;
  /plain-object) json '{"body":"x","headers":{}}' ;;
  /explicit) head 'Status: 201 Created' 'Content-Type: text/html' 'X-One: 1' && printf '<p>hi</p>' ;;
  /explicit-untyped) printf 'hi' ;;
  /only-status) head 'Status: 404' ;;
  /status-text) head 'Status: 202' ;;
  /base64) head 'content-type: image/png' && printf 'iVBORw==' | base64 -d ;;
  /object-body) json '{"ok":true}' ;;
  /loose-headers) head 'x-number: 7' 'x-yes: true' ;;
  /multi) head 'x-a: 1' 'x-a: 2' && printf 'm' ;;
  /cookies) head 'Set-Cookie: a=1; Path=/' 'Set-Cookie: b=2' && printf 'c' ;;
  /hop-headers) head 'Connection: close' 'Transfer-Encoding: chunked' 'Content-Length: 99' 'x-own: 1' && printf 'h' ;;
  /no-content) head 'Status: 204' && printf 'dropped' ;;
  /untidy-headers) head 'X-Mixed-Case:   v  ' ;;
  /status-600) head 'Status: 600' ;;
  /status-zero) head 'Status: 0' ;;
  /status-words) head 'Status: fine' ;;
  /status-true) head 'Status: true' ;;
  /crlf) head 'x-bad: a\r\nset-cookie: stolen=1' ;;
  /crlf-name) head 'x-bad\r\nx: a' ;;
  /wide-header) head 'x-wide: 日本' ;;
  /crlf-cookie) head 'set-cookie: a=1\r' ;;
  /odd-header) head 'x-odd: ["a"]' ;;
  /header-array) head '[["a","b"]]' ;;
  /not-base64) printf 'a' | base64 -d ;;
  /unholdable | /nan | /circular) printf 'text holds anything' ;;
  /huge-headers) v=$(printf '%01000d' 0) && for n in {1..200}; do echo "x-$n: $v" >&4; done ;;
  /raise) echo 'no such luck' >&2 && exit 1 ;;
  /sized) command head -c "${QUERY_STRING#n=}" /dev/zero | tr '\0' x ;;
  /pieces) for piece in one '' two three; do printf '%s' "$piece" && sleep 0.02; done ;;
  /byte-pieces) printf '\0' && later && printf '\1\377' ;;
  /explicit-pieces)
    head 'Status: 206' 'content-type: text/event-stream' && printf 'data: 1\n\n' && later && printf 'data: 2\n\n'
    ;;
  /no-pieces) ;;
  /fails-first) echo 'before any piece' >&2 && exit 1 ;;
  /fails-later) printf 'one' && later && echo 'after a piece' >&2 && exit 1 ;;
  /wrong-piece) printf 'one' && later && printf '2' ;;
  /event*) head 'content-type: application/json' && cat <&3 ;;
  /length) printf '%d' "$(wc -c)" ;;
  /context)
    left=$((HEADRACE_DEADLINE_MS - $(date +%s%3N)))
    json "$(
      printf '{"invocation_id":"%s","aws_request_id":"%s",' "$HEADRACE_INVOCATION" "$HEADRACE_INVOCATION"
      printf '"function_name":"%s","function_version":"%s",' "$HEADRACE_FUNCTION" "$HEADRACE_VERSION"
      printf '"memory_limit_in_mb":%d,"remaining_at_least_25_s":%s,' "$HEADRACE_MEMORY_MB" "$([ $left -gt 25000 ] && echo true)"
      printf '"remaining_at_most_30_s":%s}' "$([ $left -le 30000 ] && echo true)"
    )"
    ;;
  /remaining) left=$((HEADRACE_DEADLINE_MS - $(date +%s%3N))) && printf '%d' $((left > 0 ? left : 0)) ;;
esac
