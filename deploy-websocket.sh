#!/usr/bin/env bash
# Deploys what is in this directory over what runs, without down time.
set -euo pipefail
name=deploy-websocket.sh

usage() {
  cat << 'END'
usage: deploy-websocket.sh [options]

Eight steps:
  1 environment   programs, Python, settings
  2 backup        messages (a snapshot), configuration and the code that ran; ./backups/NAME
  3 build         the new image, or the new requirements and an import of the new code
  4 preflight     ports, disk space, the Compose file
  5 deploy        on a host: `make reload`, live sockets are handed over; or the first start.
                  In containers: a new one starts beside the old one, takes its sockets over, and
                  the old one is removed. What has changed around it (net, Valkey, the pages,
                  Caddy) is renewed in a step of its own; the report counts the disconnected clients
  6 health        GET /status answers "ok"
  7 websocket     handshake, subscription, a message received
  8 report        the result, and how many clients were disconnected: backups/NAME/report.json

Nothing that runs is stopped before its successor serves. When a step from 3 on fails, the code and
configuration of the last good deployment are put back (the new ones are kept in
backups/NAME/failed) and taken by the service; what was stored stays.

options:
  --base-url URL    where to look at the service (its own address on this machine; in containers what
                    Caddy publishes here, by the name API_DOMAIN)
  --connect ADDRESS, --ca FILE, --wait SECONDS    as of verify-deployment.sh (with TLS_ISSUER=internal
                    Caddy's own authority is trusted)
  --docker, --host  do not find out which it is
  --timeout SECONDS for the service to become healthy (60)
  --min-free MB     disk space that must be free (1024)
  --keep N          backups to keep, that of this deployment included (10)
  --no-backup       skip step 2
  --no-rollback     leave a failed deployment as it is
  --no-start        fail if no service runs, rather than start one
  --json            print the report as JSON on stdout
  --dry-run         do the checks that change nothing, and say what else would be done
  -h, --help

exit codes:
  0   deployed
  11  environment, 12 backup, 13 build, 14 preflight, 15 deploy, 16 health, 17 websocket:
      the step that failed; the previous version goes on running, or was put back
  12  also: deployed, but what is needed to put it back later could not be written (disk full)
  15  also: interrupted (^C, TERM, a closed terminal); the previous version goes on running
  20  a step failed, and putting back failed too: look at the service
  64  wrong usage
  69  there is no Python with the service's requirements
  75  another deployment is under way, from this directory or another one of the same Compose project
      or DATA_DIR on this machine
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/common.sh
source "$here/scripts/common.sh"

base='' connect='' ca='' wait=35 mode='' timeout=60 min_free=1024 keep=10
backup=1 rollback=1 start=1 as_json='' dry_run=''
need() { [[ $# -ge 2 && -n $2 ]] || die 64 "$1 needs a value"; }
while (($#)); do
  case $1 in
    --base-url) need "$@"; base=${2%/}; shift ;;
    --connect) need "$@"; connect=$2; shift ;;
    --ca) need "$@"; ca=$2; shift ;;
    --wait) need "$@"; wait=$2; shift ;;
    --docker | --host) only_one "$1" "$mode" "${1#--}"; mode=${1#--} ;;
    --timeout) need "$@"; timeout=$2; shift ;;
    --min-free) need "$@"; min_free=$2; shift ;;
    --keep) need "$@"; keep=$2; shift ;;
    --no-backup) backup='' ;;
    --no-rollback) rollback='' ;;
    --no-start) start='' ;;
    --json) as_json=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit 0 ;;
    *) die 64 "unknown argument $1; see --help" ;;
  esac
  shift
done
for number in "$wait" "$timeout" "$min_free" "$keep"; do
  is_number "$number" || die 64 "$number must be an integer of 0 or more, without a zero in front"
done
((keep > 0)) || die 64 "--keep must be 1 or more: the backup of this deployment is one"
[[ -z $base || $base =~ ^https?://[^/]+$ ]] || die 64 "the base URL must be http:// or https:// and a host"

# The reader of the output may end first, as `tee` does on ^C.
trap '' PIPE
exec 4>&1 # where the report goes, also from within a step whose output goes elsewhere
stamp=$(date --utc +%Y%m%d_%H%M%S) # names sort by age, also where clocks change in autumn
directory=$backups/$stamp
last_good=$backups/last-good.tar.gz
image=yujian-presence-backend
# Other projects of the engine have images of their own to go back to.
project=$(compose_setting COMPOSE_PROJECT_NAME yujian-presence)
suffix=''
[[ $project == yujian-presence ]] || suffix=-$project
image_latest=$image:$(compose_setting TAG latest) image_next=$image:next$suffix
image_good=$image:good$suffix image_previous=$image:previous$suffix

step='' began=$SECONDS how='nothing' noticed=0 handed_over=0 steps=() tried='' put_back=false nothing_before='' own_ca='' not_back='' ending='' serves='' pause='' reported='' ran_before=''

# How a step ends: note STATE DETAIL
note() {
  local detail=${2//$'\n'/ } quoted
  say "$(printf '%-12s %-7s %s' "$step" "$1" "$detail")"
  # ^C ends a subshell before it has printed: then `interrupted` reports the step.
  until quoted=$(json "$detail"); do :; done
  steps+=("{\"step\":\"$step\",\"state\":\"$1\",\"detail\":$quoted}")
}

report() {
  reported=1
  local code=$1 IFS=, text
  text=$(printf '{"ok":%s,"code":%d,"mode":"%s","how":%s,"handed_over":%d,"noticed":%d,' \
    "$( ((code)) && echo false || echo true)" "$code" "$mode" "$(json "$how")" "$handed_over" "$noticed"
  printf '"pause_ms":%d,' "${pause:-0}"
  printf '"rolled_back":%s,"serves":%s,"backup":%s,"seconds":%d,"steps":[%s]}' \
    "$put_back" "$(json "$serves")" "$(json "${directory##*/}")" "$((SECONDS - began))" "${steps[*]}")
  # A disk that is full and a reader that has ended do not change what was done.
  if [[ -d $directory ]]; then printf '%s\n' "$text" > "$directory/report.json" || true; fi
  if [[ -n $as_json ]]; then printf '%s\n' "$text" >&4 || true; fi
}

# fail CODE DETAIL: put back the previous version, report, and exit.
fail() {
  local code=$1
  note failed "$2"
  rm -f "$backups/.$stamp.rdb" 2> /dev/null || true # of a backup that was interrupted
  # Steps that come before any change have nothing to put back.
  if ((code >= 13)) && [[ -n $rollback && -z $dry_run ]]; then
    step=rollback
    if put_back; then
      if [[ -n $nothing_before ]]; then
        note skipped "nothing ran before"
      else
        put_back=true
        note ok "the previous version serves"
      fi
    else
      code=20
      see_what_serves
      note failed "${not_back:-the previous version could not be restored}; $serves"
    fi
  elif [[ -n $tried ]]; then
    [[ $mode != docker || $step != deploy ]] || settle_docker || say "Look at the containers: docker compose ps"
    see_what_serves
    say "$serves"
  fi
  report "$code"
  exit "$code"
}

see_what_serves() {
  if serves=$(is_healthy 2>&1); then
    serves="the running service is healthy ($serves)"
  else
    serves="the running service is not healthy (${serves##*$'\n'})"
  fi
}

# ^C, or a terminal that is closed: end as a failed step does, with the previous version.
interrupted() {
  trap '' INT TERM HUP
  # What is called from here on must not end where the terminal is gone.
  exec 3>&2 && said_to=3
  { exec 2> "$backups/interrupted.log"; } 2> /dev/null || exec 2> /dev/null
  case $step in
    backup | preflight | environment) rollback='' ;;
  esac
  fail 15 "${1:-interrupted} in the step $step"
}

# Bash 5.2 may run a trap while it parses $(…), and then ends with a syntax error and code 2.
ended() {
  [[ -z $own_ca ]] || rm -f "$own_ca"
  [[ -n $reported ]] || interrupted "ended without a result"
}

# The authority to trust: the one that was named, or Caddy's own, as soon as it has made it.
authority() {
  if [[ -n $own_ca ]] && { [[ -s $own_ca ]] || fetch_authority "$own_ca"; }; then
    printf '%s' "$own_ca"
  else
    printf '%s' "$ca"
  fi
}

is_healthy() {
  "$python" -m scripts.probe http "$base" --connect "$connect" --ca "$(authority)"
}

wait_until_healthy() {
  local limit=$((SECONDS + timeout)) said
  until said=$(is_healthy); do
    if ((SECONDS >= limit)); then
      echo "$said"
      return 1
    fi
    sleep 0.5
  done
  echo "$said"
}

# Steps of a host

install_requirements() { # into the Python that runs, when pins differ from what is installed
  "$python" - << 'END' && return 0
import importlib.metadata as installed, re, sys
for line in open("requirements.lock"):
    pin = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", line)
    if pin and ";" not in line:  # one with a marker need not apply here
        try:
            if installed.version(pin[1]) != pin[2]:
                sys.exit(1)
        except installed.PackageNotFoundError:
            sys.exit(1)
END
  [[ $1 != try ]] || {
    # A trial apart from what runs: if this fails, nothing has changed.
    rm -rf "$trial"
    "$python" -m venv "$trial" && install_locked "$trial/bin/python"
    return $?
  }
  install_locked "$python"
}

install_locked() { # files with the hashes of requirements.lock, and no others
  "$1" -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
}

build_host() {
  # Where the user of the service can run it.
  trial=$root/.trial
  local builder=$python
  install_requirements try || return 1
  [[ ! -x $trial/bin/python ]] || builder=$trial/bin/python
  # The last imports the application and the class of the workers as well.
  as_service "$builder" -m app.config > /dev/null &&
    as_service "$builder" -m gunicorn --check-config -c gunicorn.conf.py
  local result=$?
  rm -rf "$trial"
  return "$result"
}

end_master() { # PID
  local limit=$((SECONDS + timeout))
  # Where it is a unit's, systemd starts no other one meanwhile.
  if is_a_unit; then systemctl stop "$unit"; else kill -TERM "$1"; fi
  while kill -0 "$1" 2> /dev/null; do
    ((SECONDS < limit)) || return 1
    sleep 0.1
  done
}

deploy_host() {
  local answer pid result=0
  install_requirements now || return 1
  if pid=$(master_pid) && ! { if is_a_unit; then can_reload_unit; else has_worker; fi; }; then
    # It cannot start, and would take no new code; there are no clients to keep.
    tried=1
    end_master "$pid" || { how="gunicorn $pid serves nothing, and does not end"; return 1; }
    start_host
    return $?
  fi
  if [[ -n $pid ]]; then
    tried=1
    if is_a_unit; then
      # Only a process of the unit can notify systemd of a new master.
      reload_unit || result=1
      if [[ -n $started_unit ]]; then
        how='started by systemd'
        ((result)) || adopt_unit
        return "$result"
      fi
      answer=$(cat "$(setting data_dir)/reload.json")
    else
      answer=$("$python" -m workers.reload --json) || result=$?
    fi
    {
      read -r handed_over noticed pause
      how=$(cat)
    } < <("$python" -c 'import json, sys; r = json.loads(sys.argv[1])
print(r.get("handed_over", 0), r.get("drained", 0) + r.get("lost", 0), round(1000 * (r.get("pause_max") or 0)))
print(r.get("error") or "live sockets were handed over to new workers (%s)" % r["signal"])' "$answer") || true
    # 3: all is new, but connections were drained or lost: the report says how many.
    if ((result == 3)) && [[ $answer == *'"error"'* ]]; then result=1; fi
    ((result == 0 || result == 3))
    return $?
  fi
  [[ -n $start ]] || { how='no service runs'; return 1; }
  tried=1
  start_host
}

# Whether the master that runs is that of the systemd unit.
is_a_unit() {
  [[ -d /run/systemd/system ]] && [[ $(systemctl show --property MainPID --value "$unit") == "$(master_pid)" ]]
}

reload_host() {
  if is_a_unit; then reload_unit; else "$python" -m workers.reload >&2; fi
}

start_host() {
  local data_dir pid
  if has_unit; then
    how='started by systemd'
    start_unit && adopt_unit
    return $?
  fi
  data_dir=$(setting data_dir)
  mkdir -p "$data_dir"
  how='started for the first time'
  setsid --fork "$python" -m gunicorn -c gunicorn.conf.py < /dev/null >> "$data_dir/service.log" 2>&1 4>&- 8<&- 9>&-
  for _ in {1..100}; do
    if pid=$(master_pid); then
      how+=" (pid $pid)"
      return $?
    fi
    sleep 0.1
  done
  tail -n 1 "$data_dir/service.log" >&2
  return 1
}

# Puts the code and configuration of the last good deployment in place.
restore_files() {
  local output
  mkdir -p "$directory"
  output=$("$python" -m scripts.release restore "$last_good" "$directory/failed" 2>&1) || {
    not_back="the previous files cannot be restored: $(tail -n 1 <<< "$output")"
    return 1
  }
  read_settings || true # .env is the previous one
}

# Whether the previous version serves again.
is_back() {
  local answer
  answer=$(wait_until_healthy) || { not_back="the service is not healthy: $answer"; return 1; }
}

put_back_host() {
  local result=0 pid
  if [[ -n $tried && $how == 'started for the first time'* ]]; then
    if pid=$(master_pid); then kill -TERM "$pid"; fi
  fi
  [[ -n $ran_before ]] || nothing_before=1
  # A first deployment has nothing that ran before.
  if [[ ! -f $last_good ]]; then
    say "There was no deployment before this one: the files stay as they are."
    ! master_pid > /dev/null || is_back
    return $?
  fi
  restore_files || return 1
  install_requirements now || { not_back='the previous requirements cannot be installed'; return 1; }
  if master_pid > /dev/null; then
    # What failed may have left new workers of the new code, or none.
    [[ -z $tried ]] || reload_host || result=$?
    ((result == 0 || result == 3)) || { not_back='the service does not take the previous code'; return 1; }
    is_back
  elif [[ -n $ran_before ]]; then
    local how
    start_host || { not_back='what ran before has ended, and does not start'; return 1; }
    is_back
  fi
}

# Steps of containers

build_docker() {
  docker build --quiet --tag "$image_next" . > /dev/null &&
    docker run --rm --network none "$image_next" python -c 'import app.main, workers.runtime, workers.start'
}

# What the command has printed that failed, where it is one of the Dockerfile: what docker says after that is
# the place, and the command.
cause_of_build() {
  local said printed
  said=$(cat)
  printed=$(sed -n '/^ > \[/,/^------/p' <<< "$said" | grep -vE '^(------| > \[)|^ *$' || true)
  if [[ -n $printed ]]; then
    { tail -n 3 <<< "$printed"; tail -n 1 <<< "$said"; }
  else
    tail -n 3 <<< "$said"
  fi
}

image_of() { docker inspect --format '{{.Image}}' "$1"; }
image_id() { docker image inspect --format '{{.Id}}' "$1" 2> /dev/null; }

# Containers of a service that run, the oldest first. Compose itself takes five times as long.
running() {
  docker ps --quiet --no-trunc --filter status=running \
    --filter "label=com.docker.compose.project=$project" \
    --filter "label=com.docker.compose.service=$1" \
    --filter label=com.docker.compose.oneoff=False | tac
}

# Whether a container shares the network that the service `net` owns now.
is_live() {
  local net
  net=$(docker compose ps --quiet --status running net) && [[ -n $net ]] &&
    [[ $(docker inspect --format '{{.HostConfig.NetworkMode}}' "$1") == "container:$net" ]]
}

count_of() { docker exec "$1" python -m scripts.hold_connections --count 2> /dev/null; }

# As long as the old container lives, its connections count in the new one too.
pass_on() { # OLD NEW
  local count
  while count=$(count_of "$1"); do
    echo "$count"
    sleep 0.5
  done | docker exec --interactive "$2" python -m scripts.hold_connections
}

wait_healthy() {
  local limit=$((SECONDS + timeout)) state=''
  while [[ $state != 'running healthy' ]]; do
    ((SECONDS < limit)) || return 1
    sleep 0.3
    state=$(docker inspect --format '{{.State.Status}} {{.State.Health.Status}}' "$1") || return 1
    [[ $state == running* ]] || return 1
  done
}

# The services whose containers are not as docker-compose.yml and the images want them.
changed_services() {
  local service wanted hash image name
  local -a found
  local -A hashes=() images=() names=()
  mapfile -t found < <(docker compose ps --quiet --status running)
  while IFS=$'\t' read -r service hash image name; do
    hashes[$service]=$hash images[$service]=$image names[$service]=$name
  done < <( ((${#found[@]} == 0)) || docker inspect --format "$as_deployed" "${found[@]}")
  while read -r service wanted; do
    [[ $service == backend ]] || {
      [[ ${hashes[$service]-} == "$wanted" && ${images[$service]} == "$(image_id "${names[$service]}")" ]]
    } || echo "$service"
  done < <(docker compose config --hash '*')
}
as_deployed='{{index .Config.Labels "com.docker.compose.service"}}{{"\t"}}{{index .Config.Labels "com.docker.compose.config-hash"}}{{"\t"}}{{.Image}}{{"\t"}}{{.Config.Image}}'

# Renew the other containers, each in its own way, and count the clients that are disconnected.
renew_surroundings() {
  local service changed one count
  changed=$(changed_services)
  for service in $changed; do
    case $service in
      net)
        # Every connection is in its network: they drain, and come back to the new one.
        if [[ -n $(docker compose ps --quiet net) ]]; then
          for one in $(running backend); do
            count=$(count_of "$one" || echo 0)
            noticed=$((noticed + count))
            docker stop "$one" > /dev/null && docker rm "$one" > /dev/null || return 1
          done
          renewed+=" net ($count clients closed)"
        fi
        docker compose up --detach --no-deps net || return 1
        ;;
      valkey)
        # The sockets of the clients stay; publishing is answered 503 for seconds.
        renewed+=' valkey (publishing paused)'
        docker compose up --detach --no-deps --wait --wait-timeout "$timeout" valkey || return 1
        ;;
      caddy) ;; # last of all: the others must be there
      *)
        renewed+=" $service"
        docker compose up --detach --no-deps "$service" || return 1
        ;;
    esac
  done
  caddy_changed=''
  [[ " ${changed//$'\n'/ } " != *' caddy '* ]] || caddy_changed=1
}

renew_caddy() {
  local one count=0
  if [[ -n $caddy_changed ]]; then
    for one in $(running backend); do count=$(count_of "$one" || echo 0); done
    renewed+=" caddy ($count clients closed)"
    noticed=$((noticed + count))
    docker compose up --detach --no-deps --wait --wait-timeout "$timeout" caddy
  else
    # Without --force: an unchanged configuration is not loaded. A reload closes kept-alive connections, and
    # a request that is just being sent on one is lost.
    docker compose exec -T caddy caddy reload --config /etc/caddy/Caddyfile --adapter caddyfile
  fi
}

# Removes containers of the backend that have ended, as an aborted deployment leaves them, and those that
# end again and again: Compose would start them rather than make a new one.
clear_away() {
  local one
  docker compose rm --force backend > /dev/null || return 1
  for one in $(docker compose ps --all --quiet backend); do
    case $(docker inspect --format '{{.State.Status}} {{.State.Health.Status}} {{.RestartCount}}' "$one") in
      restarting* | 'running starting '[1-9]*) docker rm --force "$one" > /dev/null || return 1 ;;
      paused*) docker unpause "$one" > /dev/null || return 1 ;;
    esac
  done
}

# A killed deployment may leave two beside each other, and a third could not take the place of both.
keep_one() {
  local one kept='' old
  mapfile -t old < <(running backend)
  ((${#old[@]} > 1)) || return 0
  for one in "${old[@]}"; do
    if [[ -z $kept ]] && wait_healthy "$one"; then
      kept=$one
    else
      docker stop "$one" > /dev/null && docker rm "$one" > /dev/null || return 1
    fi
  done
}

deploy_docker() {
  local old
  clear_away || return 1
  keep_one || return 1
  mapfile -t old < <(running backend)
  remember_previous "${old[@]}" || return 1
  docker tag "$image_next" "$image_latest" || return 1
  tried=1
  if ((${#old[@]} == 0)) && [[ -z $(docker compose ps --quiet) ]]; then
    how='started for the first time'
    if ! said=$(docker compose up --detach --wait --wait-timeout "$timeout" 2>&1); then
      say "$said"
      how="$(tail -n 1 <<< "$said"); $(last_words "$(docker compose ps --all --quiet backend | head -n 1)")"
      return 1
    fi
    return 0
  fi
  renew_surroundings || { how="cannot renew:${renewed:- the other containers}"; return 1; }
  replace_containers || return 1
  renew_caddy || { how='Caddy does not take its configuration'; return 1; }
  if [[ -n $renewed ]]; then how+="; renewed:$renewed"; fi
}
renewed='' caddy_changed='' fresh=''

# The image to go back to: the last one that was found good, or that which runs.
remember_previous() { # CONTAINER...
  local good one
  if good=$(image_id "$image_good"); then
    docker tag "$good" "$image_previous"
    return $?
  fi
  for one; do
    docker tag "$(image_of "$one")" "$image_previous"
    return $?
  done
}

last_words() { # CONTAINER: why it does not serve, in one line
  local log='' words=''
  [[ -z $1 ]] || log=$(docker logs --tail 200 "$1" 2>&1)
  words=$(grep 'cannot serve' <<< "$log" | tail -n 1) || words=$(grep -i error <<< "$log" | tail -n 1) || true
  # The end of a traceback says what is wrong.
  if ((${#words} > 400)); then words="...${words: -400}"; fi
  printf '%s' "${words:-it says nothing}"
}

# Start one container of the newest image, wait until it is healthy, then end the others.
replace_containers() {
  local old one holder drained live=1 words logged since
  logged=$(mktemp)
  mapfile -t old < <(running backend)
  docker compose up --detach --no-deps --no-recreate --scale "backend=$((${#old[@]} + 1))" backend || {
    how='the new container does not start'
    docker compose rm --force backend > /dev/null
    return 1
  }
  fresh=$(running backend | grep -vxF "$(printf '%s\n' "${old[@]-}")" || true)
  if [[ -n $fresh && $(image_of "$fresh") != "$(image_id "$image_latest")" ]]; then
    how='Compose has started a container of another image'
    return 1
  fi
  if [[ -z $fresh ]] || ! wait_healthy "$fresh"; then
    docker version > /dev/null 2>&1 || { how='the engine does not answer'; return 1; }
    [[ -n $fresh ]] || fresh=$(docker compose ps --all --quiet --status exited --status restarting backend | head -n 1)
    how="the new container is not healthy: $(last_words "$fresh")"
    [[ -z $fresh ]] || docker rm --force "$fresh" > /dev/null
    fresh=''
    return 1
  fi
  for one in "${old[@]}"; do
    ending=$one
    if is_live "$one"; then
      # TERM: its workers hand their sockets over to those of the new container.
      # What its log says from here on: it may have handed over to its own new workers before.
      since=$(docker logs --timestamps --tail 1 "$one" 2>&1 | cut -d ' ' -f 1)
      docker stop "$one" > /dev/null || return 1
      docker logs ${since:+--since "$since"} "$one" > "$logged" 2>&1
      pause=$(grep -oE '[0-9]+ ms \(max\)' "$logged" | awk -v most="${pause:-0}" '{ if ($1 > most) most = $1 } END { print most }')
      words=$(grep -oE 'Handed [0-9]+ connections over to [0-9]+ workers in [0-9.]+ s; [0-9]+ are drained' "$logged")
      handed_over=$((handed_over + $(awk '{ sum += $2 } END { print sum + 0 }' <<< "$words")))
      noticed=$((noticed + $(awk '{ sum += $(NF - 2) } END { print sum + 0 }' <<< "$words")))
    else
      # Another network, as before there was a service `net`: it takes no connection any more, and drains
      # over DRAIN_SECONDS.
      live=''
      drained=$(count_of "$one" || echo 0)
      noticed=$((noticed + drained))
      pass_on "$one" "$fresh" > /dev/null 4>&- 8<&- 9>&- &
      holder=$!
      docker stop "$one" > /dev/null || return 1
      wait "$holder" || true
    fi
    docker rm "$one" > /dev/null || return 1
    ending=''
  done
  rm -f "$logged"
  if ((${#old[@]} == 0)); then
    how='no container ran: a new one was started'
  elif [[ -n $live ]]; then
    how='live sockets were handed over to a new container'
  else
    how='a new container took over; the old one was drained and its clients came back'
  fi
}

# Leave one version where a deployment that is not put back has ended between two: what ran before.
settle_docker() {
  local one old=() new=()
  await_engine "$timeout" || return 1
  # What got TERM hands over and exits: it cannot be kept.
  [[ -z $ending ]] || timeout "$timeout" docker wait "$ending" > /dev/null 2>&1 || true
  clear_away || return 1
  for one in $(running backend); do
    if [[ $(image_of "$one") == "$(image_id "$image_next")" ]]; then new+=("$one"); else old+=("$one"); fi
  done
  ((${#old[@]})) || return 0
  if ((${#new[@]})); then docker stop "${new[@]}" > /dev/null && docker rm "${new[@]}" > /dev/null || return 1; fi
  docker tag "$(image_of "${old[0]}")" "$image_latest"
}

put_back_docker() {
  local bad=() one good files=''
  # Where its files cannot be put in place, its image still serves.
  if [[ -f $last_good ]] && ! restore_files; then files=$not_back; fi
  if [[ -z $tried ]]; then
    docker version > /dev/null 2>&1 || { not_back='the engine does not answer'; return 1; }
    [[ -n $(running backend) ]] || nothing_before=1
    not_back=$files
    [[ -z $files ]]
    return $?
  fi
  # It may have been restarted, and have ended the step that failed.
  await_engine "$timeout" || { not_back='the engine does not answer'; return 1; }
  not_back='a Docker command failed (its message is above)'
  good=$(image_id "$image_previous") || {
    say "There was no deployment before this one: the containers stay as they are."
    nothing_before=1
    return 0
  }
  docker tag "$good" "$image_latest" || return 1
  # A container that got TERM before the interruption hands over and exits: it cannot be kept.
  [[ -z $ending ]] || timeout "$timeout" docker wait "$ending" > /dev/null 2>&1 || true
  clear_away || return 1
  for one in $(running backend); do
    [[ $(image_of "$one") == "$good" ]] || bad+=("$one")
  done
  if ((${#bad[@]})) || [[ -z $(running backend) ]]; then
    # Those of the failed image that have replaced others, or were about to.
    if running backend | grep -qvxF "$(printf '%s\n' "${bad[@]-}")"; then
      docker stop "${bad[@]}" > /dev/null && docker rm "${bad[@]}" > /dev/null || return 1
    else
      replace_containers || { not_back=$how; return 1; }
    fi
  fi
  # Its files are the previous ones.
  docker compose exec -T caddy caddy reload --config /etc/caddy/Caddyfile --adapter caddyfile || true
  is_back || return 1
  not_back=$files
  [[ -z $files ]]
}

build() { if [[ $mode == docker ]]; then build_docker; else build_host; fi; }
deploy() { if [[ $mode == docker ]]; then deploy_docker; else deploy_host; fi; }
put_back() { if [[ $mode == docker ]]; then put_back_docker; else put_back_host; fi; }

make_backup() {
  local rdb=() result=0
  if [[ $mode == docker && -n $(docker compose ps -q valkey 2> /dev/null) ]]; then
    # A replica's copy is complete, unlike a file that is being written. Into a file: to standard output
    # `valkey-cli` writes the mark that ends a replication as well, and no Valkey loads that.
    # shellcheck disable=SC2016  # expanded in the container
    docker compose exec -T valkey sh -c '
      f=/data/.backup.rdb
      # By default it would wait five seconds for more replicas.
      valkey-cli config set repl-diskless-sync-delay 0 > /dev/null
      valkey-cli --rdb "$f" >&2 && cat "$f"; result=$?
      rm -f "$f"; exit "$result"' > "$backups/.$stamp.rdb" || result=$?
    rdb=(--rdb "$backups/.$stamp.rdb")
  fi
  ((result)) || "$python" -m scripts.backup create "$directory" --release "$last_good" "${rdb[@]}" || result=$?
  rm -f "$backups/.$stamp.rdb"
  # That of this deployment stays, even where the clock was set back.
  ((result)) || find "$backups" -mindepth 1 -maxdepth 1 -type d -name '2*_*' ! -name "$stamp" | sort -r |
    tail -n "+$keep" | xargs -r -d '\n' rm -rf --
  return "$result"
}

# Before anything is written: what the backup, the image and the messages will need.
check_space() {
  local place places=("$backups")
  if [[ $mode == docker ]]; then
    # Images and volumes, where the engine is on this machine.
    places+=("$(docker info --format '{{.DockerRootDir}}')")
  else
    places+=("$(setting data_dir)")
  fi
  for place in "${places[@]}"; do
    while [[ ! -d $place ]]; do place=$(dirname "$place"); done
    free=$(($(df --output=avail --block-size=1M "$place" | tail -n 1)))
    if ((free < min_free)); then
      echo "$place has $free MB free; $min_free are wanted (--min-free)"
      return 1
    fi
  done
}

check_engine() {
  engine=$(docker version --format '{{.Server.Version}}') || return 1
  # Those that are built from a branch have a name.
  if [[ $engine =~ ^[0-9]+ ]] && ((BASH_REMATCH[0] < 25)); then
    echo "Docker engine $engine is too old for start_interval in docker-compose.yml: 25 or newer is needed"
    return 1
  fi
}

preflight_docker() {
  local said files
  docker compose config --quiet || return 1
  files=$(compose_setting NOFILE 65536)
  # shellcheck disable=SC2016  # no expression of the shell
  if ! said=$(docker run --rm --network none --ulimit "nofile=$files:$files" "$image_next" true 2>&1); then
    echo "the engine gives no container $files open files: set NOFILE in .env to less ($(tail -n 1 <<< "$said"))"
    return 1
  fi
  echo "$free MB free, docker-compose.yml is good, engine $engine"
}

# Prints a warning if there are files of secrets that Compose does not use.
unused_secrets() {
  [[ -z $(compose_setting SECRETS_DIR '') && -n $(find secrets -type f -size +0 -print -quit 2> /dev/null) ]] &&
    echo "secrets/ is not used: SECRETS_DIR=./secrets is missing in .env"
}

preflight() {
  local pid free engine
  check_space || return 1
  if [[ $mode == docker ]]; then
    check_engine && preflight_docker
    return $?
  fi
  if pid=$(master_pid); then
    echo "$free MB free; gunicorn $pid serves"
    return 0
  fi
  read_bind || { echo "$free MB free"; return 0; }
  # To connect would start the service.
  if has_unit && systemctl is-active --quiet "$socket_unit"; then
    echo "$free MB free, systemd listens for the service"
    return 0
  fi
  # shellcheck disable=SC2016  # expanded by the inner shell
  if timeout 5 bash -c ': < "/dev/tcp/$0/$1"' "$bound_host" "$bound_port" 2> /dev/null; then
    echo "another program listens on $bound_host:$bound_port"
    return 1
  fi
  echo "$free MB free, $bound_host:$bound_port is free"
}

# The steps

step=environment
trap interrupted INT TERM HUP
find_python
trap ended EXIT
adopt_unit
export_token
read_settings || true # why not is said below
said=$(check_backups) || fail 11 "$said"
[[ -n $mode ]] || { if runs_in_docker; then mode=docker; else mode=host; fi; }
if [[ $mode == host ]] && ran_before=$(master_pid); then
  # HUP would renew the code of the other one.
  elsewhere=$(readlink "/proc/$ran_before/cwd") || elsewhere=$root
  [[ $elsewhere -ef $root ]] ||
    fail 11 "gunicorn $ran_before serves from $elsewhere; 'python -m workers.start --replace' puts $root in its place"
fi
if [[ $mode == docker ]]; then
  said=$(check_docker) || fail 11 "$said"
  said=$(read_published 2>&1) || fail 11 "${said#"$name: "}"
fi
((${#settings[@]})) || said=$("$python" -m app.config 2>&1 > /dev/null) || fail 11 "$said"
if [[ -z $base ]]; then
  if [[ $mode == docker ]]; then
    base=$(public_base)
    connect=${connect:-$(published_address)}
  else
    base=$(local_base) || fail 11 "the service listens on a Unix socket: pass --base-url"
    connect=${connect:-$(local_address)}
  fi
fi
if [[ $mode == docker && -z $ca && $(compose_setting TLS_ISSUER acme) == internal ]]; then
  own_ca=$(mktemp)
fi
if [[ -z $dry_run ]]; then
  step=backup
  said=$( (umask 077 && mkdir -p "$backups") 2>&1) || fail 12 "$said"
  step=environment
  exec 9> "$backups/.lock"
  flock --nonblock 9 || {
    reported=1
    die 75 "another deployment is under way"
  }
  lock_deployment "$mode" || {
    (($? == 75)) || fail 11 "$not_locked"
    reported=1
    die 75 "$not_locked"
  }
  rm -rf "$backups"/.2* # of backups that were killed
fi
note ok "$mode mode, $("$python" --version), $base"

if [[ -n $dry_run ]]; then
  step=preflight
  said=$(preflight) || fail 14 "$said"
  note ok "$said"
  [[ $mode != docker ]] || ! said=$(unused_secrets) || note warning "$said"
  for step in backup build deploy health websocket; do note dry "would be done"; done
  report 0
  exit 0
fi

step=preflight
if ! said=$(check_space && { [[ $mode == host ]] || check_engine; }); then
  rollback='' # nothing has changed
  fail 14 "$said"
fi

step=backup
if [[ -n $backup ]]; then
  said=$(make_backup 2>&1) || fail 12 "$said"
  note ok "$directory$([[ $mode == host || -d $directory/data ]] || printf ', without messages: Valkey does not run')"
else
  note skipped "--no-backup"
fi

step=build
said=$(build 2>&1) || fail 13 "$(cause_of_build <<< "$said")"
note ok "the new code starts"

step=preflight
said=$(preflight) || fail 14 "$said"
note ok "$said"
[[ $mode != docker ]] || ! said=$(unused_secrets) || note warning "$said"

step=deploy
deploy >&2 || fail 15 "$how"
note ok "$how"

step=health
said=$(wait_until_healthy) || fail 16 "$said"
note ok "$said"

step=websocket
said=$("$python" -m scripts.probe socket "$base" --connect "$connect" --ca "$(authority)" --wait "$wait") ||
  fail 17 "$said"
note ok "$said"

step=report
trap '' INT TERM HUP
packed=''
said=$( ("$python" -m scripts.release pack "$last_good" && echo "$mode" > "$backups/mode") 2>&1) || packed=$said
if [[ $mode == docker ]]; then
  docker tag "$image_latest" "$image_good"
  # Images that have lost their name: those of deployments before the last.
  docker image prune --force --filter 'label=org.opencontainers.image.title=Yujian Presence' > /dev/null || true
fi
if [[ -n $packed ]]; then
  note failed "deployed, but the next deployment can only put the one before it back: $(tail -n 1 <<< "$packed")"
  report 12
  exit 12
fi
note ok "$handed_over clients were handed over in pauses of at most ${pause:-0} ms, $noticed were disconnected, $((SECONDS - began)) s"
report 0
