#!/usr/bin/env bash
# Brings a named backup back: what the service had stored, its configuration and its code.
set -euo pipefail
name=rollback.sh

usage() {
  cat << 'END'
usage: rollback.sh [options] NAME

Restores the backup NAME of ./backups (a path is taken as it is), checked first by its sums and
by Valkey's own checkers; one that is damaged is refused. Then the running service takes the
code and settings without a stop: clients stay connected. Where messages were restored, clients
learn by a `gap` that the streams have fallen back; what was published since the backup is gone,
so `--release-only` is what a bad deployment needs.

In containers the messages are in the `valkey` container, which is started anew on the snapshot.

options:
  --data-only       what was stored, not configuration and code
  --release-only    configuration and code, not what was stored
  --no-reload       leave the running processes as they are
  --base-url URL, --connect ADDRESS, --ca FILE
                    where to look at the service, as of verify-deployment.sh
  --list            list the backups, and whether each is complete
  --json            one JSON object at the end
  --dry-run         check the backup, and say what would be done
  -h, --help

What is replaced is kept: files in the backup's folder `failed`, messages in
DATA_DIR/valkey/appendonlydir.replaced.

exit codes:
  0   done
  2   the backup is damaged; nothing was changed
  3   there is no such backup, or it holds no messages to restore; nothing was changed
  4   it could not be restored, or was interrupted (^C, TERM, a closed terminal): messages are as before
  5   restored, but the service does not take it: the message says what state it is in
  64  wrong usage
  69  there is no Python with the service's requirements
  75  a deployment is under way
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
called_from=$PWD
# shellcheck source=scripts/common.sh
source "$here/scripts/common.sh"

backup='' what=() reload=1 list='' as_json='' dry_run='' looking=() as_seen=() base=''
need() { [[ $# -ge 2 && -n $2 ]] || die 64 "$1 needs a value"; }
while (($#)); do
  case $1 in
    --data-only | --release-only)
      option=${1%-only}
      only_one "$1" "${what[*]-}" "$option"
      what=("$option")
      ;;
    --no-reload) reload='' ;;
    --base-url | --connect | --ca)
      need "$@"
      looking+=("$1" "$2")
      if [[ $1 == --base-url ]]; then base=${2%/}; else as_seen+=("$1" "$2"); fi
      shift
      ;;
    --list) list=1 ;;
    --json) as_json=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit 0 ;;
    -*) die 64 "unknown option $1; see --help" ;;
    *) [[ -z $backup ]] || die 64 "two backups: $backup and $1"; backup=$1 ;;
  esac
  shift
done
find_python
adopt_unit
said=$(check_backups) || die 4 "$said"

if [[ -n $list ]]; then
  for one in "$backups"/*/; do
    [[ -d $one ]] || continue
    if said=$("$python" -m scripts.backup check "$one" 2>&1); then said=complete; fi
    printf '%s  %s\n' "$(basename "$one")" "$said"
  done
  exit 0
fi
[[ -n $backup ]] || die 64 "which backup? See --list"
case $backup in
  /*) directory=$backup ;;
  */*) directory=$called_from/$backup ;;
  *) directory=$backups/$backup ;;
esac

# finish CODE MESSAGE
finish() {
  finished=1
  say "$2"
  if [[ -n $as_json ]]; then
    printf '{"backup":%s,"ok":%s,"code":%d,"message":%s}\n' "$(json "$directory")" \
      "$( (($1)) && echo false || echo true)" "$1" "$(json "$2")" || true
  fi
  exit "$1"
}

# The reader of the output may end first.
trap '' PIPE
[[ -d $directory ]] || finish 3 "there is no backup $directory"
checked=0
said=$("$python" -m scripts.backup check "$directory" 2>&1) || checked=$?
((checked != 3)) || finish 2 "$said"
((checked == 0)) || finish 4 "the backup could not be checked: ${said##*$'\n'}"
say "The backup is complete: $directory"

has_data=''
[[ ${what[*]-} == --release || ! -d $directory/data ]] || has_data=1
[[ ${what[*]-} != --data || -n $has_data ]] || finish 3 "it holds no messages: there were none when it was made"
if [[ -n $dry_run ]]; then
  [[ ${what[*]-} == --data ]] || say "would restore configuration and code"
  [[ -z $has_data ]] || say "would restore what was stored"
  [[ -z $reload ]] || say "would let the running service take it"
  finish 0 "nothing was changed"
fi

valkey_stopped='' finished=''

# Valkey's volume gets the snapshot while its container is stopped: seconds in which publishing
# is answered 503; the sockets of the clients stay. Through a pipe, since its user may not read
# the backup. When Valkey does not start from it, what was there before is put back.
restore_container() {
  local why='The messages cannot be unpacked into the volume'
  valkey_stopped=1
  docker compose stop valkey || return 1
  # shellcheck disable=SC2016  # expanded in the container
  if tar --create --directory "$directory/data" appendonlydir |
    in_volume '
      rm -rf .fresh
      # Of a restore that was killed: what it has moved away, and replaced or not.
      if [ -e appendonlydir.before ]; then
        [ ! -e appendonlydir ] || rm -rf appendonlydir.replaced
        [ ! -e appendonlydir ] || mv appendonlydir.before appendonlydir.replaced
        [ -e appendonlydir ] || mv appendonlydir.before appendonlydir
      fi
      mkdir .fresh
      tar -xf - -C .fresh
      [ ! -e appendonlydir ] || mv appendonlydir appendonlydir.before
      mv .fresh/appendonlydir appendonlydir
      rmdir .fresh' && why='Valkey does not start from the backup' && start_valkey; then
    valkey_stopped=''
    # shellcheck disable=SC2016  # expanded in the container
    docker compose exec -T valkey sh -c 'cd /data
      [ ! -e appendonlydir.before ] || { rm -rf appendonlydir.replaced; mv appendonlydir.before appendonlydir.replaced; }'
    return $?
  fi
  say "$why: what it had before is put back."
  put_back_container
  return 1
}

put_back_container() {
  valkey_stopped=''
  await_engine 60 || say "The engine does not answer; when it does: docker compose up --detach --no-deps valkey"
  docker compose stop valkey || return 1
  # shellcheck disable=SC2016  # expanded in the container
  in_volume '
    rm -rf .fresh
    [ ! -e appendonlydir.before ] || { rm -rf appendonlydir; mv appendonlydir.before appendonlydir; }' < /dev/null ||
    say "What it had before cannot be put in place: it is appendonlydir or appendonlydir.before in Valkey's volume"
  start_valkey || say "Valkey does not start: docker compose logs valkey"
}

# ^C, or a terminal that is closed, must not leave Valkey stopped, or half of a backup.
# shellcheck disable=SC2329  # by trap
interrupted() {
  trap '' INT TERM HUP
  exec 3>&2 && said_to=3
  { exec 2> "$backups/interrupted.log"; } 2> /dev/null || exec 2> /dev/null
  if [[ -n $valkey_stopped ]]; then
    say "Interrupted: what Valkey had before is put back."
    put_back_container >&2
  fi
  finish 4 "${1:-interrupted}"
}

# Bash 5.2 may run a trap while it parses $(…), and then ends with a syntax error and code 2.
# shellcheck disable=SC2329  # by trap
ended() { [[ -n $finished ]] || interrupted "ended without a result"; }

in_volume() { docker compose run --rm --no-deps -T --entrypoint sh valkey -c "set -e; cd /data; $1"; }

start_valkey() { docker compose up --detach --no-deps --wait --wait-timeout 60 valkey; }

kept="the files that were replaced are in $directory/failed"

# Whether the service of this host is well; prints what is seen.
look() {
  local at=("$base")
  [[ -n $base ]] || at=("$(local_base)" --connect "$(local_address)")
  "$python" -m scripts.probe http "${at[@]}" "${as_seen[@]}" 2>&1
}

# The state of the running service, in words.
serves() {
  local found
  if found=$(look); then
    printf 'the running service is healthy (%s)' "$found"
  else
    printf 'the running service is not healthy (%s)' "${found##*$'\n'}"
  fi
}

read_settings || true
# A backup of another machine may be the first one here.
said=$( (umask 077 && mkdir -p "$backups") 2>&1) || finish 4 "$said"
exec 9> "$backups/.lock"
flock --nonblock 9 || finish 75 "a deployment is under way"
mode=host
if runs_in_docker; then mode=docker; fi
lock_deployment "$mode" || finish "$(($? == 75 ? 75 : 4))" "$not_locked"
trap interrupted INT TERM HUP
trap ended EXIT
if [[ $mode == docker ]]; then
  said=$(check_docker) || finish 4 "$said"
  if [[ -n $has_data ]]; then
    restore_container || finish 4 "the messages could not be restored: docker compose logs valkey"
  fi
  if [[ ${what[*]-} != --data ]]; then
    "$python" -m scripts.backup restore "$directory" --release >&2 ||
      finish 4 "configuration and code could not be restored"
    if [[ -n $reload ]]; then
      exec 8<&- 9>&- # the deployment takes it, and is interrupted instead of us
      trap : INT TERM HUP
      result=0
      said=$(./deploy-websocket.sh --docker --no-rollback --no-backup --json "${looking[@]}") || result=$?
      if ((result)); then
        said=$("$python" -c 'import json, sys; print(json.loads(sys.argv[1])["serves"])' "$said" 2> /dev/null) || said=''
        finish 5 "restored, but the service does not take it: deploy-websocket.sh ended with $result; ${said:+$said; }$kept"
      fi
    fi
  fi
  finish 0 "Restored from $directory"
fi

"$python" -m scripts.backup restore "$directory" "${what[@]}" >&2 ||
  finish 4 "it could not be restored"
read_settings || true # .env may be another one
if [[ -n $reload && ${what[*]-} != --data ]]; then
  # 3: some connections were drained, which is no failure.
  result=0
  # One that was stopped by hand stays so.
  if has_unit && [[ $(systemctl is-active "$unit") != inactive ]]; then
    reload_unit || result=1
  else
    "$python" -m workers.reload >&2 || result=$?
  fi
  case $result in
    0 | 3) ;;
    2) say "No service runs, so nothing was reloaded." ;;
    *) finish 5 "restored, but the service does not take it; $(serves); $kept" ;;
  esac
fi
if [[ -n $reload ]] && master_pid > /dev/null && [[ -n ${base:-$(local_base)} ]]; then
  healthy=''
  for _ in {1..60}; do
    if said=$(look); then healthy=1; break; fi
    sleep 0.5
  done
  [[ -n $healthy ]] || finish 5 "restored, but the service is not healthy: $said"
  say "The service is healthy: $said"
fi
finish 0 "Restored from $directory"
