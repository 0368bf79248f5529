# shellcheck shell=bash
# What the scripts of the repository's root share. They set `name`, then source this file.

set -euo pipefail
: "${name:?set it before this file is sourced}"
export LC_ALL=C
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
backups=${BACKUPS:-$root/backups}

# A message must not end a script when its terminal or the reader of its output is gone.
said_to=2
say() { printf '%s\n' "$*" >&"$said_to" || true; }

# die CODE MESSAGE
die() {
  say "$name: $2"
  exit "$1"
}

# The Python that has the service's requirements.
find_python() {
  local candidate
  for candidate in "${PYTHON-}" .venv/bin/python python3; do
    if [[ -n $candidate ]] && "$candidate" -c 'import aiohttp, redis, dotenv' 2> /dev/null; then
      python=$candidate
      return $?
    fi
  done
  die 69 "no Python with the requirements: run 'make run' once, or set PYTHON"
}

unit=yujian-presence.service
# shellcheck disable=SC2034  # of the scripts
socket_unit=yujian-presence.socket

# Whether the service of this machine is a unit of systemd, running or not.
has_unit() { [[ -d /run/systemd/system ]] && systemctl cat "$unit" > /dev/null 2>&1; }

# The settings that systemd gives to the unit, where our own environment has none: without its DATA_DIR
# no script would find the service, or its messages once it has stopped.
adopt_unit() {
  has_unit || return 0
  local pid file given
  pid=$(systemctl show --property MainPID --value "$unit")
  if [[ ${pid:-0} != 0 ]]; then
    if [[ -r /proc/$pid/environ ]]; then adopt_environment "/proc/$pid/environ"; fi
    return 0
  fi
  # systemd itself reads the unit's files, by its own rules of quoting.
  given=(--property "Environment=$(systemctl show --property Environment --value "$unit")")
  while read -r file; do
    # /path (ignore_errors=yes)
    [[ -z $file ]] || given+=(--property "EnvironmentFile=-${file% (*}")
  done < <(systemctl show --property EnvironmentFiles --value "$unit")
  # A oneshot, which is waited for without a message bus.
  file=$(mktemp)
  systemd-run --quiet --collect --service-type oneshot "${given[@]}" \
    --property "StandardOutput=truncate:$file" /usr/bin/env --null 2> /dev/null ||
    say "systemd does not give the settings of $unit: those of the environment and of .env are used"
  adopt_environment "$file"
  rm -f "$file"
}

# adopt_environment FILE: pairs that end with a zero byte.
adopt_environment() {
  local pair names setting_name
  names=$("$python" -m app.config --table | grep -oE '^[|] .[A-Z_]+' | tr -cd 'A-Z_\n')
  while IFS= read -r -d '' pair; do
    setting_name=${pair%%=*}
    if grep -qxF -- "$setting_name" <<< "$names" && [[ -z ${!setting_name-} ]]; then
      export "${pair?}"
    fi
  done < "$1"
}

# setting NAME: a validated setting of the service, in lower case.
setting() { "$python" -m app.config --get "$1" 2> /dev/null; }

# Runs a command as the user that DATA_DIR belongs to: files that root leaves there are of no use to the
# service, and those of another user it refuses.
as_service() {
  local data_dir owner
  data_dir=$(setting data_dir)
  owner=$(stat --format '%u %g' "$data_dir" 2> /dev/null) || owner='0 0'
  if ((EUID == 0)) && [[ $owner != '0 '* ]]; then
    setpriv --reuid "${owner% *}" --regid "${owner#* }" --init-groups -- "$@"
  else
    "$@"
  fi
}

# A text as a JSON string.
json() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  printf '"%s"' "$(printf '%s' "$text" | tr -d '\000-\037')"
}

# The address of the service on this machine.
local_base() {
  local bind
  bind=$(setting bind) || return 1
  case $bind in
    unix:*) return 1 ;;
    0.0.0.0:*) bind=127.0.0.1:${bind##*:} ;;
    '[::]:'*) bind="[::1]:${bind##*:}" ;;
  esac
  printf 'http://%s' "$bind"
}

# The token for the probes, if this machine knows it; by the environment, not by arguments.
export_token() {
  if [[ -z ${PUBLISH_TOKEN-} && -r .env ]]; then
    PUBLISH_TOKEN=$(sed -n 's/^PUBLISH_TOKEN=//p' .env | tail -n 1)
    PUBLISH_TOKEN=${PUBLISH_TOKEN//[\"\']/}
  fi
  export PUBLISH_TOKEN=${PUBLISH_TOKEN-}
}

# Whether a worker serves, or may.
has_worker() {
  local result=0
  DATA_DIR=$(setting data_dir) as_service "$python" -m scripts.healthy --worker || result=$?
  ((result != 3))
}

# Whether systemd can reload the unit: not while it is just being started again.
can_reload_unit() {
  case $(systemctl is-active "$unit") in
    active | reloading) has_worker ;;
    *) return 1 ;;
  esac
}

# Also where it has failed so often that systemd does not start it any more.
start_unit() {
  systemctl reset-failed "$unit" "$socket_unit" 2> /dev/null || true
  systemctl restart "$unit"
}

# Pid of the gunicorn master of this machine; nothing when none runs.
master_pid() {
  local data_dir pid file
  data_dir=$(setting data_dir) || return 1
  # The second is that of a new master whose predecessor has just ended.
  for file in gunicorn.pid gunicorn.pid.2; do
    pid=$(cat "$data_dir/$file" 2> /dev/null) || continue
    if [[ $pid =~ ^[0-9]+$ ]] && tr '\0' ' ' < "/proc/$pid/cmdline" 2> /dev/null | grep -q gunicorn; then
      printf '%s' "$pid"
      return $?
    fi
  done
  return 1
}

# Whether this user can read and write the backups; prints whose they are where not.
check_backups() {
  [[ ! -e $backups || (-r $backups && -w $backups && -x $backups) ]] || {
    echo "$backups belongs to $(stat --format %U "$backups"): run this as that user"
    return 1
  }
}

# await_engine SECONDS: whether the engine answers, or does within that time after it was restarted.
await_engine() {
  local limit=$((SECONDS + $1))
  until docker version > /dev/null 2>&1; do
    ((SECONDS < limit)) || return 1
    sleep 0.5
  done
}

has_docker() { command -v docker > /dev/null && docker compose version > /dev/null 2>&1; }

# What the last deployment has noted: docker or host. Without an engine that answers it is all there is to know by.
deployed_mode() { cat "$backups/mode" 2> /dev/null || true; }

# Whether this project is deployed in containers, also when they have stopped or cannot be asked for:
# then one needs to know.
runs_in_docker() {
  [[ $(deployed_mode) == docker ]] || { has_docker && [[ -n $(docker compose ps --all --quiet 2> /dev/null) ]]; }
}

# compose_setting NAME DEFAULT: a variable as docker-compose.yml gets it, from the environment or .env.
compose_setting() {
  local value=${!1-}
  if [[ -z $value && -r .env ]]; then
    value=$(sed -n "s/^$1=//p" .env | tail -n 1 | tr -d "\r\"'")
  fi
  printf '%s' "${value:-$2}"
}

# The address of the service for its clients, behind Caddy.
public_base() {
  local publish
  publish=$(compose_setting HTTPS_PUBLISH 443)
  publish=${publish##*:}
  printf 'https://%s%s' "$(compose_setting API_DOMAIN api.yujian.team)" \
    "$([[ $publish == 443 ]] || printf ':%s' "$publish")"
}

# Where this machine itself reaches what Caddy publishes, whatever the name of the service stands for.
published_address() {
  local publish
  publish=$(compose_setting HTTPS_PUBLISH 443)
  case $publish in
    0.0.0.0:*) printf '127.0.0.1' ;;
    *]:*) publish=${publish%:*} && publish=${publish#[} && printf '%s' "${publish%]}" ;;
    *:*) printf '%s' "${publish%:*}" ;;
    *) printf '127.0.0.1' ;;
  esac
}

# fetch_authority FILE: where Caddy signs by itself (TLS_ISSUER=internal), its root certificate, once it has one.
fetch_authority() {
  [[ $(compose_setting TLS_ISSUER acme) == internal ]] &&
    docker compose cp caddy:/data/caddy/pki/authorities/local/root.crt "$1" > /dev/null 2>&1
}
