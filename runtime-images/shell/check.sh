# Reads the files that are named, as the first that is no shell script shows: as JSON, with where and why. Runs nothing.
# A file that says in its first line that something else runs it is not looked at.

quoted() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "${text//[[:cntrl:]]/ }"
}

for path in "$@"; do
  IFS= read -r first <"$path" 2>/dev/null
  case $first in
    '#!'*bash* | '#!'*/sh | '#!'*/sh' '* | '#!'*dash*) ;;
    '#!'*) continue ;;
    *) [[ $path == *.sh ]] || continue ;;
  esac
  said=$(LC_ALL=C bash -n -- "$path" 2>&1) && continue
  [[ $said =~ line\ ([0-9]+):\ ([^$'\n']*) ]] || continue
  line=${BASH_REMATCH[1]} message=${BASH_REMATCH[2]}
  text=$(sed -n "${line}p" -- "$path")
  printf '{"path": %s, "line": %d, "message": %s, "text": %s, "as": "bash %s"}\n' \
    "$(quoted "$path")" "$line" "$(quoted "$message")" "$(quoted "${text:0:200}")" "${BASH_VERSINFO[0]}.${BASH_VERSINFO[1]}"
  exit
done
