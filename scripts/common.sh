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

# A number as arithmetic takes it: with a zero in front it would be one of base 8.
is_number() { [[ $1 =~ ^(0|[1-9][0-9]{0,8})$ ]]; }

# only_one OPTION BEFORE AFTER: of two options that say the opposite.
only_one() { [[ -z $2 || $2 == "$3" ]] || die 64 "$1 contradicts an option before it"; }

# The Python that has the service's requirements.
find_python() {
  local candidate
  for candidate in "${PYTHON-}" .venv/bin/python python3; do
    # To import them would take a second.
    if [[ -n $candidate ]] && "$candidate" -c 'import sys; from importlib.util import find_spec
sys.exit(not all(map(find_spec, ("aiohttp", "redis", "dotenv"))))' 2> /dev/null; then
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
  settings=()
}

# Reads once what `setting` is asked for again and again: each start of Python takes a tenth of a second. To be
# called again when .env has changed.
read_settings() {
  local text found
  settings=()
  text=$("$python" -m app.config --get data_dir bind 2> /dev/null) || return 1
  mapfile -t found <<< "$text"
  # One with a line break is asked for each time.
  ((${#found[@]} != 2)) || settings=([data_dir]=${found[0]} [bind]=${found[1]})
}
declare -A settings=()

# setting NAME: a validated setting of the service, in lower case.
setting() {
  if [[ -n ${settings[$1]+read} ]]; then
    printf '%s\n' "${settings[$1]}"
  else
    "$python" -m app.config --get "$1" 2> /dev/null
  fi
}

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

# Whether the service listens on a port: where, in `bound_host` and `bound_port`.
read_bind() {
  local bind
  bind=$(setting bind) || return 1
  [[ $bind != unix:* ]] || return 1
  bound_port=${bind##*:} bound_host=${bind%:*}
  bound_host=${bound_host#[} bound_host=${bound_host%]}
  case $bound_host in
    '' | 0.0.0.0) bound_host=127.0.0.1 ;;
    ::) bound_host=::1 ;;
  esac
}

# The address of the service on this machine, by a name that it always accepts (ALLOWED_HOSTS).
local_base() { read_bind && printf 'http://127.0.0.1:%s' "$bound_port"; }

# Where that name stands for.
local_address() { read_bind && printf '%s' "$bound_host"; }

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

# Lets the unit take new code and settings. A unit whose workers do not start ends while it is asked to reload,
# and systemd starts it again in between: then the way is a start, which `started_unit` notes. Fails where the unit
# goes on with what it had, or does not start.
reload_unit() {
  local invocation
  started_unit=''
  if can_reload_unit; then
    invocation=$(systemctl show --property InvocationID --value "$unit")
    if systemctl reload "$unit"; then return 0; fi
    if [[ $(systemctl show --property InvocationID --value "$unit") == "$invocation" ]] && can_reload_unit; then return 1; fi
  fi
  # shellcheck disable=SC2034  # of the scripts
  started_unit=1
  start_unit
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

# Whether this user can read and write the backups; prints what to do where not.
check_backups() {
  local remedy='run this as that user'
  [[ ! -e $backups || (-r $backups && -w $backups && -x $backups) ]] && return
  [[ ! -O $backups ]] || remedy='chmod u+rwx it'
  echo "$backups belongs to $(stat --format %U "$backups"), and cannot be read and written: $remedy"
  return 1
}

# lock_of MODE: the file whose lock says that what this checkout deploys is being changed. It is the same one
# for all checkouts and users of this machine: of a Compose project of an engine, or of a DATA_DIR.
lock_of() {
  local directory what
  # Where every user may make files, or each could have a directory of their own.
  directory=/tmp
  [[ $(stat --format %a /run/lock 2> /dev/null) != *[2367] ]] || directory=/run/lock
  if [[ $1 == docker ]]; then
    what=$(docker info --format '{{.ID}}' 2> /dev/null) || true
    what=$(compose_setting COMPOSE_PROJECT_NAME yujian-presence)@$what
  else
    what=$(realpath --canonicalize-missing -- "$(setting data_dir)") || return 1
  fi
  printf '%s/yujian-presence-%s.lock' "$directory" "$(sha256sum <<< "$what" | cut -c 1-16)"
}

# lock_deployment MODE: take that lock, for as long as descriptor 8 is open. Else `not_locked` says why:
# another process has it (75), or the file cannot be made (1).
lock_deployment() {
  local file
  not_locked='it is not known what to lock: there is no valid DATA_DIR'
  file=$(lock_of "$1") || return 1
  # Nothing is written to it, and another user's is only read: the kernel refuses more in such a directory.
  [[ -e $file ]] || (umask 022 && set -o noclobber && : > "$file") 2> /dev/null || true
  not_locked="$file cannot be made, or is no file: a deployment takes its lock"
  [[ -f $file && -r $file ]] || return 1
  exec 8< "$file"
  # shellcheck disable=SC2034  # of the scripts
  not_locked="a deployment of another directory is under way: it holds the lock $file"
  flock --nonblock 8 || return 75
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
# then one needs to know. Without the plugin `compose` too, so that it is missed and no host is assumed.
runs_in_docker() {
  [[ $(deployed_mode) == docker ]] || { command -v docker > /dev/null && [[ -n $(docker ps --all --quiet \
    --filter "label=com.docker.compose.project=$(compose_setting COMPOSE_PROJECT_NAME yujian-presence)" 2> /dev/null) ]]; }
}

# Whether Docker can be used; prints why not.
check_docker() {
  local said
  command -v docker > /dev/null || { echo "docker is missing"; return 1; }
  docker compose version > /dev/null 2>&1 || { echo "docker has no plugin compose: install docker-compose-plugin"; return 1; }
  said=$(docker version --format '{{.Server.Version}}' 2>&1) || { echo "${said##*$'\n'}"; return 1; }
}

# Lets compose_setting ask Compose itself, which reads what the service refuses to read in .env as well.
ask_compose() {
  compose_environment=$(docker compose config --environment 2> /dev/null) &&
    [[ $compose_environment == *COMPOSE_PROJECT_NAME=* ]] || compose_environment=''
}
compose_environment=''

# compose_setting NAME DEFAULT: a variable as docker-compose.yml gets it, from the environment or .env. One
# that is set and empty has its default.
compose_setting() {
  local value=''
  if [[ -n $compose_environment ]]; then
    value=$(sed -n "s/^$1=//p" <<< "$compose_environment" | tail -n 1)
  elif [[ -n ${!1+set} ]]; then
    value=${!1}
  elif [[ -r .env ]]; then
    value=$(sed -n "s/^$1=//p" .env | tail -n 1 | tr -d "\r\"'")
  fi
  printf '%s' "${value:-$2}"
}

# Where Caddy is published: `published_port`, and `published_at`, where this machine itself reaches it, whatever
# the name of the service stands for.
read_published() {
  local publish
  publish=$(compose_setting HTTPS_PUBLISH 443)
  # Of a range, or without a port, the engine chooses one.
  [[ $publish =~ ^((.*):)?0*([1-9][0-9]{0,4})$ ]] ||
    die 64 "HTTPS_PUBLISH=$publish must be [address:]port, with one port"
  published_at=${BASH_REMATCH[2]} published_port=${BASH_REMATCH[3]}
  published_at=${published_at#[} published_at=${published_at%]}
  case $published_at in
    '' | 0.0.0.0) published_at=127.0.0.1 ;;
    ::) published_at=::1 ;;
  esac
}

# The address of the service for its clients, behind Caddy.
public_base() {
  read_published
  printf 'https://%s%s' "$(compose_setting API_DOMAIN api.yujian.team)" \
    "$([[ $published_port == 443 ]] || printf ':%s' "$published_port")"
}

published_address() { read_published && printf '%s' "$published_at"; }

# fetch_authority FILE: where Caddy signs by itself (TLS_ISSUER=internal), its root certificate, once it has one.
fetch_authority() {
  [[ $(compose_setting TLS_ISSUER acme) == internal ]] &&
    docker compose cp caddy:/data/caddy/pki/authorities/local/root.crt "$1" > /dev/null 2>&1
}
