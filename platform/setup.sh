# What `platform/up`, `tests/run` and `.ci/run` share: this file is sourced, with `root` set to the checkout.
# Every step looks first and does only what is missing, so a second run takes no time.

readonly ENGINE_SOCKET="${HEADRACE_ENGINE_SOCKET:-/var/run/docker.sock}"
readonly LEAST_FREE_MIB=2048
readonly ENGINE_STARTS_S=60

say() { printf '==> %s\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$1" >&2
  shift
  if (($#)); then printf '       %s\n' "$@" >&2; fi
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

is_root() { [[ $(id -u) == 0 ]]; }

may_install() { is_root && have apt-get; }

# One line that replaces itself on a terminal, and nothing where there is none.
progress() { if [[ -t 2 ]]; then printf '\r\033[K    %s' "$(cut -c "1-${COLUMNS:-100}" <<<"$*")" >&2; fi; }
progress_end() { if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi; }

# run_quietly WHAT COMMAND...: the command's lines are progress; when it fails its last ones are shown.
run_quietly() {
  local what=$1 log line status=0
  shift
  log=$(mktemp)
  "$@" </dev/null 2>&1 | tee "$log" | while IFS= read -r line; do progress "$line"; done || status=$?
  progress_end
  if ((status)); then
    tail -n 15 "$log" | sed 's/^/    /' >&2
    rm -f "$log"
    die "$what failed with exit code $status; its last lines are above." "Run this again when the cause is gone."
  fi
  rm -f "$log"
}

apt_install() {
  check_setup_disk
  say "installing with apt: $*"
  export DEBIAN_FRONTEND=noninteractive
  if [[ -z ${apt_updated:-} ]]; then
    run_quietly "apt-get update" apt-get -o DPkg::Lock::Timeout=120 update
    apt_updated=yes
  fi
  run_quietly "apt-get install" apt-get -o DPkg::Lock::Timeout=120 install -y "$@"
}

# need COMMAND PACKAGE: install PACKAGE when COMMAND is missing, or say how.
need() {
  if have "$1"; then return; fi
  if may_install; then apt_install "$2"; fi
  have "$1" || die "$1 is missing on this machine." "Install it: apt-get install $2 (as root), or this system's own package."
}

# The setting HOME as the platform reads it.
home_dir() { printf '%s' "${HEADRACE_HOME:-$HOME/.headrace}"; }

existing_parent() {
  local path=$1
  while [[ ! -e $path ]]; do path=$(dirname "$path"); done
  printf '%s' "$path"
}

# The disks that every start needs.
check_disk() { check_places "$root" "$(home_dir)"; }

# The disks that setting up needs besides.
check_setup_disk() { check_places "${TMPDIR:-/tmp}" /var/lib/docker; }

check_places() {
  local place free
  for place in "$@"; do
    place=$(existing_parent "$place")
    free=$(df -Pm "$place" | awk 'NR == 2 {print $4}')
    if ((free < LEAST_FREE_MIB)); then
      die "the disk of $place is nearly full: $free MiB are free, $LEAST_FREE_MIB are needed." \
        "Free some space and run this again; \`docker system df\` shows what containers and images take."
    fi
  done
}

# --- Python ---------------------------------------------------------------------------------------------------------

suits() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

makes_environments() { "$1" -c 'import venv, ensurepip' 2>/dev/null; }

# The distribution's own goes first: it is built with all optimisations, and our code runs a quarter faster on it than on
# one that was built by hand without them.
find_python() {
  local name
  if suits /usr/bin/python3 && makes_environments /usr/bin/python3; then
    printf '/usr/bin/python3'
    return
  fi
  for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
    if have "$name" && suits "$name"; then
      printf '%s' "$name"
      return
    fi
  done
}

# Leaves a usable interpreter in `python`.
ensure_interpreter() {
  python=$(find_python)
  if [[ -z $python ]] && may_install; then
    apt_install python3 python3-venv
    python=$(find_python)
  fi
  [[ -n $python ]] || die "Python 3.11 or newer is missing." "Install it, for example from python.org, and run this again."
  if ! makes_environments "$python"; then
    if may_install; then apt_install python3-venv; fi
    makes_environments "$python" \
      || die "the module venv of $python is missing." "Install it: apt-get install python3-venv (as root), or another Python."
  fi
}

# The environment in `.venv` holds exactly what `requirements.lock` says. A stamp tells which lock, project and place it
# was completed for; a mark stands in it while it changes, and one that was left behind makes it anew.
ensure_environment() {
  local venv=$root/.venv stamp mark=$root/.venv/.changing
  exec 9<"$root"
  if have flock; then flock 9; fi
  stamp=$(cat "$root/requirements.lock" "$root/pyproject.toml" <(printf '%s' "$root") | sha256sum | cut -d ' ' -f 1)
  if [[ -x $venv/bin/headrace && ! -e $mark && $(cat "$venv/.complete" 2>/dev/null) == "$stamp" ]] \
    && suits "$venv/bin/python"; then
    exec 9<&-
    return
  fi
  check_setup_disk
  ensure_interpreter
  if [[ -e $mark ]] || { [[ -e $venv ]] && ! suits "$venv/bin/python"; }; then
    say "removing a Python environment that was left incomplete"
    rm -rf "$venv"
  fi
  say "making the Python environment in .venv ($("$python" --version 2>&1))"
  mkdir -p "$venv"
  touch "$mark"
  run_quietly "making .venv" "$python" -m venv "$venv"
  say "installing the locked packages"
  pip_install --require-hashes -r "$root/requirements.lock"
  pip_install --no-build-isolation --no-deps --editable "$root"
  run_quietly "the check of the installed packages" "$venv/bin/python" -m pip --disable-pip-version-check check
  printf '%s\n' "$stamp" >"$venv/.complete"
  rm "$mark"
  exec 9<&-
}

pip_install() {
  run_quietly "installing Python packages" \
    "$root/.venv/bin/python" -m pip --disable-pip-version-check install --progress-bar off "$@"
}

# --- Docker engine --------------------------------------------------------------------------------------------------

# 0: it answers, 2: no socket, 3: nobody listens, 4: no permission, 5: it does not answer properly.
ping_engine() {
  "$root/.venv/bin/python" - "$ENGINE_SOCKET" <<'PYTHON'
import socket, sys
codes = {FileNotFoundError: 2, ConnectionRefusedError: 3, PermissionError: 4}
try:
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        link.connect(sys.argv[1])
        link.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
        answer = b""
        while piece := link.recv(4096):
            answer += piece
    sys.exit(0 if answer.endswith(b"OK") else 5)
except OSError as error:
    sys.exit(codes.get(type(error), 5))
PYTHON
}

ensure_engine() {
  local state=0
  ping_engine || state=$?
  case $state in
    0) return ;;
    4)
      die "no permission to use the Docker engine at $ENGINE_SOCKET." \
        "Add yourself to its group and log in again: sudo usermod -aG docker $(id -un)" "Or run this as root."
      ;;
    5)
      die "the Docker engine at $ENGINE_SOCKET does not answer." "Look at its log and start it again, then run this again."
      ;;
  esac
  check_setup_disk
  if ! have dockerd; then
    may_install || die "the Docker engine is missing." \
      "Install it as root, for example: apt-get install docker.io" \
      "Or run Headrace without isolation, for development only: HEADRACE_DRIVER=process"
    apt_install docker.io
  fi
  if ping_engine; then return; fi # the package has started it
  start_engine
}

start_engine() {
  local log=/var/log/headrace-dockerd.log waited=0 pid=
  is_root || die "the Docker engine is stopped." "Start it: sudo systemctl start docker" \
    "Without systemd: sudo setsid dockerd &"
  if [[ -d /run/systemd/system ]]; then
    say "starting the Docker engine with systemd"
    run_quietly "starting the Docker engine" systemctl start docker
  else
    say "starting the Docker engine; its log is $log"
    setsid dockerd --host "unix://$ENGINE_SOCKET" </dev/null >"$log" 2>&1 &
    pid=$!
  fi
  until ping_engine; do
    if ((waited >= ENGINE_STARTS_S)) || { [[ -n $pid ]] && ! kill -0 "$pid" 2>/dev/null; }; then
      progress_end
      if [[ -s $log ]]; then tail -n 15 "$log" | sed 's/^/    /' >&2; fi
      die "the Docker engine did not start; the end of its log is above." "Correct the cause and run this again."
    fi
    progress "waiting for the Docker engine, ${waited} s"
    sleep 1
    waited=$((waited + 1))
  done
  progress_end
}

# The base image is made here when no registry gives it, and that takes these.
ensure_image_tools() {
  if [[ -n ${HEADRACE_BASE_IMAGE_PYTHON:-} ]] || have debootstrap || ! may_install; then return; fi
  apt_install debootstrap
}
