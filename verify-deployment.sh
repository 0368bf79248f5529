#!/usr/bin/env bash
# Verifies a running deployment from outside; fails when one check fails.
set -euo pipefail
name=verify-deployment.sh

usage() {
  cat << 'END'
usage: verify-deployment.sh [options] [base URL]

Seven checks of a running deployment:
  http          GET /status answers 200 and says "ok", errors are JSON
  endpoints     /ws/realtime, /ws/stats and /ws/queue are there
  handshake     a real handshake, a subscription and a message received
  containers    every container runs and is healthy; on a host: the processes
  caddy         the Caddyfile is valid; over https /metrics and /hooks are not public
  ports         every port that is needed takes connections
  certificate   trusted, of this name, and valid for some days more

A check for which there is nothing on this machine (no Caddy, no https) is skipped, and says so.
With a PUBLISH_TOKEN (environment or .env) the message is our own, of the type `system`; without
one, the next that comes.

options:
  --base-url URL       the same as the argument (https://$API_DOMAIN, or https://api.yujian.team)
  --connect ADDRESS    connect there, whatever the name stands for
  --ca FILE            the authority to trust, such as Caddy's own root.crt (where Caddy signs by itself in
                       a container of this machine, with TLS_ISSUER=internal, its own)
  --origin ORIGIN      the page that the client comes from
  --days N             days that the certificate must still be valid (14)
  --ports LIST         host:port or port, between commas (that of the base URL)
  --wait SECONDS       for a message that is not our own (35)
  --only LIST          these checks alone, between commas
  --skip LIST          all but these
  --no-skips           what would be skipped fails
  --json               one JSON object instead of lines
  --dry-run            list the checks, and send no request
  -h, --help

exit codes:
  0   every check is good or was skipped
  11  http, 12 endpoints, 13 handshake, 14 containers, 15 caddy, 16 ports, 17 certificate:
      the first that fails
  64  wrong usage
  69  there is no Python with the service's requirements
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/common.sh
source "$here/scripts/common.sh"

checks=(http endpoints handshake containers caddy ports certificate)
base='' connect='' ca='' origin='' days=14 ports='' wait=35 only='' skip='' no_skips='' as_json='' dry_run=''
need() { [[ $# -ge 2 && -n $2 ]] || die 64 "$1 needs a value"; }
while (($#)); do
  case $1 in
    --base-url) need "$@"; base=$2; shift ;;
    --connect) need "$@"; connect=$2; shift ;;
    --ca) need "$@"; ca=$2; shift ;;
    --origin) need "$@"; origin=$2; shift ;;
    --days) need "$@"; days=$2; shift ;;
    --ports) need "$@"; ports=$2; shift ;;
    --wait) need "$@"; wait=$2; shift ;;
    --only) need "$@"; only=$2; shift ;;
    --skip) need "$@"; skip=$2; shift ;;
    --no-skips) no_skips=1 ;;
    --json) as_json=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit 0 ;;
    -*) die 64 "unknown option $1; see --help" ;;
    *) [[ -z $base ]] || die 64 "two base URLs: $base and $1"; base=$1 ;;
  esac
  shift
done
ask_compose
base=${base:-$(public_base)}
base=${base%/}
[[ $base =~ ^https?://[^/]+$ ]] || die 64 "the base URL must be http:// or https:// and a host"
is_number "$days" || die 64 "--days must be an integer of 0 or more"
is_number "$wait" || die 64 "--wait must be an integer of 0 or more"
[[ -z $ca || -r $ca ]] || die 64 "--ca: $ca cannot be read"
for chosen in ${only//,/ } ${skip//,/ }; do
  [[ " ${checks[*]} " == *" $chosen "* ]] || die 64 "no such check: $chosen"
done
if [[ $base == https://* ]]; then scheme_port=443; else scheme_port=80; fi
host=${base#*://}
if [[ $host =~ :[0-9]+$ ]]; then
  port=${host##*:} host=${host%:*}
else
  port=$scheme_port
fi

is_chosen() {
  [[ -z $only || ",$only," == *",$1,"* ]] && [[ ",$skip," != *",$1,"* ]]
}

probe() {
  "$python" -m scripts.probe "$1" "$base" --connect "$connect" --ca "$ca" --origin "$origin" \
    --days "$days" --wait "$wait"
}

# Each check prints one line, and returns 0 (good), 1 (bad) or 2 (nothing to check).
check_containers() {
  local bad pid workers limit=$((SECONDS + 30))
  # What was deployed, and how, is noted there.
  check_backups || return 1
  if runs_in_docker; then
    check_docker || return 1
    while
      bad=$(docker compose ps --all --format '{{.Service}}: {{.State}} {{.Health}}' |
        grep -vE ': running (healthy)?$' || true)
      # Just started: its first health check has not been made yet.
      [[ -n $bad && $bad != *': '[!r]* && $bad != *unhealthy* ]] && ((SECONDS < limit))
    do
      sleep 0.5
    done
    if [[ -n $bad ]]; then
      echo "${bad//$'\n'/, }"
      return 1
    fi
    bad=$(docker compose ps -q 2>&1) || { echo "${bad##*$'\n'}"; return 1; }
    [[ -n $bad ]] || { echo "no container of this project runs"; return 1; }
    echo "$(wc -l <<< "$bad") containers run"
  elif pid=$(master_pid); then
    mapfile -t workers < <(grep -lE "^PPid:[[:space:]]+$pid\$" /proc/[0-9]*/status 2> /dev/null)
    bad=$(grep -lE '^State:[[:space:]]+[Tt]' "/proc/$pid/status" "${workers[@]}" 2> /dev/null | tr -dc '0-9\n' | paste -sd ' ' || true)
    if [[ -n $bad ]]; then
      echo "gunicorn $pid: stopped by a signal, kill -CONT continues: $bad"
      return 1
    fi
    echo "no containers; gunicorn $pid runs with ${#workers[@]} processes"
    ((${#workers[@]} > 0))
  elif [[ $connect == 127.* || $host == 127.* || $host == localhost ]]; then
    echo "neither containers nor a gunicorn master of this directory run"
    return 1
  else
    echo "neither runs on this machine"
    return 2
  fi
}

check_caddy() {
  local caddy=${CADDY:-caddy} said
  if [[ $base == https://* ]]; then
    said=$(probe private) || { echo "$said"; return 1; }
  fi
  if runs_in_docker && [[ -n $(docker compose ps -q caddy 2> /dev/null) ]]; then
    said=$(docker compose exec -T caddy caddy validate --config /etc/caddy/Caddyfile 2>&1) ||
      { tail -n 1 <<< "$said"; return 1; }
  elif command -v "$caddy" > /dev/null; then
    said=$("$caddy" validate --config Caddyfile --adapter caddyfile 2>&1) ||
      { tail -n 1 <<< "$said"; return 1; }
  else
    echo "no Caddy on this machine"
    return 2
  fi
  echo "the Caddyfile is valid"
}

check_ports() {
  local one to at said result closed=() open=()
  for one in $(tr ',' ' ' <<< "${ports:-$port}"); do
    to=${connect:-$host} at=$one
    [[ $one != *:* ]] || to=${one%:*} at=${one##*:}
    to=${to#[} to=${to%]}
    result=0
    # shellcheck disable=SC2016  # expanded by the inner shell
    said=$(timeout 5 bash -c ': < "/dev/tcp/$0/$1"' "$to" "$at" 2>&1) || result=$?
    said=${said%%$'\n'*}
    case $result in
      0) open+=("$at") ;;
      124) closed+=("$to:$at does not answer within 5 s") ;;
      *) closed+=("$to:$at ${said##*: }") ;;
    esac
  done
  if ((${#closed[@]})); then
    printf -v said '; %s' "${closed[@]}"
    echo "closed: ${said#; }"
    return 1
  fi
  echo "open: ${open[*]}"
}

check_certificate() {
  if [[ $base != https://* ]]; then
    echo "no https"
    return 2
  fi
  probe certificate
}

run_check() {
  case $1 in
    http | endpoints) probe "$1" ;;
    handshake) probe socket ;;
    containers) check_containers ;;
    caddy) check_caddy ;;
    ports) check_ports ;;
    certificate) check_certificate ;;
  esac
}

if [[ -n $dry_run ]]; then
  for check in "${checks[@]}"; do
    is_chosen "$check" && say "would check $check of $base"
  done
  exit 0
fi
find_python
adopt_unit
export_token
if [[ -z $ca && $base == "$(public_base)" ]] && has_docker; then
  own_ca=$(mktemp)
  trap 'rm -f "$own_ca"' EXIT
  if fetch_authority "$own_ca"; then ca=$own_ca; fi
fi

code=0 number=10 rows=()
for check in "${checks[@]}"; do
  number=$((number + 1))
  is_chosen "$check" || continue
  began=${EPOCHREALTIME/./}
  result=0
  detail=$(run_check "$check" 2>&1) || result=$?
  seconds=$(((${EPOCHREALTIME/./} - began) / 1000))
  detail=${detail##*$'\n'}
  if ((result == 2)) && [[ -z $no_skips ]]; then
    state=skipped
  elif ((result == 0)); then
    state=ok
  else
    state=failed
    ((code)) || code=$number
  fi
  rows+=("{\"check\":\"$check\",\"state\":\"$state\",\"detail\":$(json "$detail"),\"milliseconds\":$seconds}")
  [[ -n $as_json ]] || printf '%-8s %-12s %s\n' "$state" "$check" "$detail"
done
if [[ -n $as_json ]]; then
  IFS=,
  printf '{"base":%s,"ok":%s,"code":%d,"checks":[%s]}\n' "$(json "$base")" \
    "$( ((code)) && echo false || echo true)" "$code" "${rows[*]}"
fi
exit "$code"
