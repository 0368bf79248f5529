#!/usr/bin/env bash
# Checks a running service once, and posts to a webhook when its state has changed.
set -euo pipefail
export LC_ALL=C TZ=UTC

usage() {
  cat << 'END'
usage: health-check.sh [options] [base URL]

Checks once whether the service is healthy:
  http         GET /status answers 200 and says "ok"; else its causes are shown
  websocket    GET /ws/stats answers, and /ws/realtime accepts a WebSocket
  connections  no more than 8000
  queue        no more than 5000 messages
  containers   every container of the compose project runs and is healthy; one that has ended fails,
               whatever its exit code; skipped without Docker

Without a base URL: where the compose project has containers, https://API_DOMAIN at the port that Caddy
publishes on this machine (API_DOMAIN and HTTPS_PUBLISH of the environment or of .env); else
http://127.0.0.1:3001.

A webhook is posted to once per change: when a check begins to fail, and when it is good again.
What could not be posted is tried at the next run. The body is that of Alertmanager's webhook,
version 4, with a `text` for chats, so that one receiver serves both.

options:
  --max-connections N     (8000)
  --max-queue N           (5000)
  --timeout SECONDS       of one request (10)
  --connect HOST[:PORT]   connect there, whatever the name in the base URL stands for
  --ca FILE               the authority to trust, such as Caddy's own root.crt
  --docker                fail the check of containers where there is no Docker
  --no-docker             skip it
  --project DIR           where docker-compose.yml is (the directory above this script)
  --webhook URL           where to post (the environment's ALERT_WEBHOOK_URL; empty: nowhere)
  --webhook-token FILE    a file with the bearer token of the webhook
  --state FILE            what was posted last (one per base URL, in $STATE_DIRECTORY or ~/.local/state/yujian)
  --insecure              accept any certificate
  --json                  one JSON object instead of lines
  --quiet                 print nothing when all checks pass and passed before: for cron
  --dry-run               check, but neither post nor write the state
  -h, --help

exit codes:
  0   all checks pass
  11  http, 12 websocket, 13 connections, 14 queue, 15 containers: the first that fails
  64  wrong usage
  69  curl or flock is missing
  73  the state cannot be written
  74  all checks pass, but the webhook could not be posted
  75  another run has not ended yet
END
}

fail() {
  echo "health-check.sh: $2" >&2
  exit "$1"
}

is_number() {
  [[ $1 =~ ^(0|[1-9][0-9]{0,9})$ ]]
}

base='' max_connections=8000 max_queue=5000 timeout=10 docker=auto looking=() connect='' ca='' json='' dry_run='' quiet=''
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
webhook=${ALERT_WEBHOOK_URL-} webhook_token='' state=''

while (($#)); do
  case $1 in
    --max-connections | --max-queue | --timeout | --project | --webhook | --webhook-token | --state | --connect | --ca)
      (($# > 1)) || fail 64 "$1 needs a value; see --help"
      ;;&
    --max-connections) max_connections=$2; shift ;;
    --max-queue) max_queue=$2; shift ;;
    --timeout) timeout=$2; shift ;;
    --connect) connect=$2; shift ;;
    --ca) ca=$2; shift ;;
    --project) project=$2; shift ;;
    --webhook) webhook=$2; shift ;;
    --webhook-token) webhook_token=$2; shift ;;
    --state) state=$2; shift ;;
    --docker) docker=yes ;;
    --no-docker) docker=no ;;
    --insecure) looking+=(--insecure) ;;
    --json) json=1 ;;
    --quiet) quiet=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit 0 ;;
    -*) fail 64 "there is no option $1; see --help" ;;
    *)
      [[ -z $base ]] || fail 64 "two base URLs: $base and $1; see --help"
      base=$1
      ;;
  esac
  shift
done

# The containers of the project, a line each; fails when Docker does not answer.
containers='' has_docker=''
if [[ $docker != no ]] && is_number "$timeout" && ((timeout > 0)) &&
  containers=$(cd "$project" 2> /dev/null && timeout "$timeout" docker compose ps --all \
    --format '{{.Service}} {{.State}} {{.Health}} {{.ExitCode}}' 2> /dev/null); then
  has_docker=1
fi

# compose_setting NAME DEFAULT: a variable as docker-compose.yml gets it, from the environment or .env. One
# that is set and empty has its default.
compose_setting() {
  local value=''
  if [[ -n $compose_environment ]]; then
    value=$(sed -n "s/^$1=//p" <<< "$compose_environment" | tail -n 1)
  elif [[ -n ${!1+set} ]]; then
    value=${!1}
  elif [[ -r $project/.env ]]; then
    value=$(sed -n "s/^$1=//p" "$project/.env" | tail -n 1 | tr -d "\r\"'")
  fi
  printf '%s' "${value:-$2}"
}

# In containers nothing but Caddy is published; it is asked on this machine, by the name of its certificate.
if [[ -z $base && -n $containers ]]; then
  # Compose itself reads more in .env than the service allows. Not before version 2.22.
  compose_environment=$(cd "$project" && timeout "$timeout" docker compose config --environment 2> /dev/null) &&
    [[ $compose_environment == *COMPOSE_PROJECT_NAME=* ]] || compose_environment=''
  published=$(compose_setting HTTPS_PUBLISH 443)
  [[ $published =~ ^((.*):)?0*([1-9][0-9]{0,4})$ ]] ||
    fail 64 "HTTPS_PUBLISH=$published must be [address:]port, with one port; or pass the base URL"
  published_at=${BASH_REMATCH[2]} published=${BASH_REMATCH[3]}
  base=https://$(compose_setting API_DOMAIN api.yujian.team)
  [[ $published == 443 ]] || base+=:$published
  if [[ -z $connect ]]; then
    case $published_at in
      '' | 0.0.0.0) connect=127.0.0.1 ;;
      \[*) connect=$published_at ;;
      *:*) connect="[$published_at]" ;;
      *) connect=$published_at ;;
    esac
    [[ $connect != '[::]' ]] || connect='[::1]'
  fi
  if [[ -z $ca && ${looking[*]-} != *--insecure* && $(compose_setting TLS_ISSUER acme) == internal ]]; then
    # Caddy signs by itself: its own authority is in its container.
    own_ca=$(mktemp)
    trap 'rm -f "$own_ca"' EXIT
    (cd "$project" && timeout "$timeout" docker compose cp \
      caddy:/data/caddy/pki/authorities/local/root.crt "$own_ca") > /dev/null 2>&1 || true
    [[ ! -s $own_ca ]] || ca=$own_ca
  fi
fi
base=${base:-http://127.0.0.1:3001}
base=${base%/}
[[ $base =~ ^https?://[^[:space:]]+$ ]] || fail 64 "the base URL must begin with http:// or https://"
[[ -z $webhook || $webhook =~ ^https?://[^[:space:]]+$ ]] ||
  fail 64 "the webhook must begin with http:// or https://"
[[ -z $webhook_token || -r $webhook_token ]] || fail 64 "$webhook_token cannot be read"
[[ -z $ca || -r $ca ]] || fail 64 "--ca: $ca cannot be read"
[[ -z $ca ]] || looking+=(--cacert "$ca")
# host::host:port: the port of the base URL where none is named.
[[ -z $connect ]] || case $connect in
  \[*]) looking+=(--connect-to "::$connect:") ;;
  *]:* | *[^:]:[0-9]*) looking+=(--connect-to "::$connect") ;;
  *) looking+=(--connect-to "::$connect:") ;;
esac
is_number "$max_connections" || fail 64 "--max-connections must be a number"
is_number "$max_queue" || fail 64 "--max-queue must be a number"
is_number "$timeout" || fail 64 "--timeout must be a number of seconds"
((timeout > 0)) || fail 64 "--timeout must be more than 0"
for program in curl flock; do
  command -v "$program" > /dev/null || fail 69 "$program is needed"
done

names=(http websocket connections queue containers)
declare -A status=() message=() value=() since=() failing=()

# report NAME ok|fail|skipped MESSAGE [VALUE]
report() {
  status[$1]=$2 message[$1]=$3 value[$1]=${4-}
}

# get PATH: leaves the HTTP status in `code` (000: no answer), the body in `body`, what curl says in `cause` and
# where a redirect leads in `redirect`.
get() {
  local answer
  cause='' redirect=''
  answer=$(curl --silent --show-error --max-time "$timeout" "${looking[@]}" --stderr - \
    --write-out '\n%{http_code} %{redirect_url}' "$base$1") || cause=$(grep -m 1 '^curl: ' <<< "$answer") || true
  code=${answer##*$'\n'}
  [[ $code != *' '?* ]] || redirect=", a redirect to ${code#* }"
  code=${code%% *}
  body=${answer%$'\n'*}
  cause=${cause#curl: }
}

# What the body of /status says is wrong, as a text; nothing where it says nothing.
causes() {
  [[ $body =~ \"causes\":\ *\[\"(([^\"\\]|\\.|\",\ *\")*)\"\] ]] || return 0
  local said=${BASH_REMATCH[1]}
  said=${said//\",\"/; }
  said=${said//\", \"/; }
  printf ': %s' "${said//\\/}"
}

check_http() {
  get /status
  if [[ $code == 000 ]]; then
    report http fail "$base/status does not answer${cause:+: $cause}"
  elif [[ $code != 200 ]]; then
    report http fail "$base/status answers $code$redirect$(causes)"
  elif [[ $body =~ \"status\":\ *\"([a-z]+)\" && ${BASH_REMATCH[1]} != ok ]]; then
    report http fail "the service reports that it is ${BASH_REMATCH[1]}$(causes)"
  elif [[ -z ${BASH_REMATCH[1]-} ]]; then
    report http fail "$base/status answers something else"
  else
    report http ok "$base/status answers 200, ok"
  fi
}

# The first line of the answer to an upgrade. curl would go on listening, so it is ended.
handshake() {
  local key line='' answer client
  key=$(head -c 16 /dev/urandom | base64)
  exec {answer}< <(
    exec curl --silent --include --no-buffer --http1.1 --max-time "$timeout" "${looking[@]}" \
      --header 'Connection: Upgrade' --header 'Upgrade: websocket' \
      --header 'Sec-WebSocket-Version: 13' --header "Sec-WebSocket-Key: $key" \
      "$base/ws/realtime" 2> /dev/null
  )
  client=$!
  read -r line <&"$answer" || true
  kill "$client" 2> /dev/null || true
  exec {answer}<&-
  printf '%s' "${line%$'\r'}"
}

# Also the figure that the next check compares.
check_websocket() {
  local line
  get /ws/stats
  connections=''
  [[ $code == 200 && $body =~ \"totalConnections\":\ *([0-9]+) ]] && connections=${BASH_REMATCH[1]}
  line=$(handshake)
  if [[ $code == 000 ]]; then
    report websocket fail "$base/ws/stats does not answer${cause:+: $cause}"
  elif [[ -z $connections ]]; then
    report websocket fail "$base/ws/stats answers $code$redirect"
  elif [[ $line != 'HTTP/1.1 101 '* ]]; then
    report websocket fail "$base/ws/realtime answers an upgrade with ${line:-nothing}"
  else
    report websocket ok "/ws/stats answers, and /ws/realtime accepts a WebSocket"
  fi
}

# check_limit NAME VALUE LIMIT UNIT
check_limit() {
  if [[ -z $2 ]]; then
    report "$1" skipped "the service does not say how many"
  elif (($2 > $3)); then
    report "$1" fail "$2 $4, more than $3" "$2"
  else
    report "$1" ok "$2 $4" "$2"
  fi
}

check_queue() {
  get /ws/queue
  local length=''
  [[ $code == 200 && $body =~ \"length\":\ *([0-9]+) ]] && length=${BASH_REMATCH[1]}
  if [[ -z $length && ${status[http]} == ok ]]; then
    report queue fail "$base/ws/queue answers $code$redirect"
  else
    check_limit queue "$length" "$max_queue" "messages wait"
  fi
}

check_containers() {
  local service state health code bad=() count=0
  if [[ $docker == no ]]; then
    report containers skipped "not asked for"
    return
  fi
  if [[ -z $has_docker ]]; then
    if [[ $docker == yes ]]; then
      report containers fail "docker compose does not answer in $project"
    elif command -v docker > /dev/null; then
      report containers skipped "docker compose does not answer in $project; without Docker here: --no-docker"
    else
      report containers skipped "no Docker here"
    fi
    return
  fi
  while read -r service state health code; do
    [[ -n $service ]] || continue
    count=$((count + 1))
    # Without a health check there is a blank in the place of its state.
    [[ -n $code ]] || code=$health health=''
    case $state in
      running) [[ $health != unhealthy ]] || bad+=("$service is unhealthy") ;;
      exited | dead) bad+=("$service has ended with code $code") ;;
      restarting) bad+=("$service is restarting, after code $code") ;;
      *) bad+=("$service is $state") ;;
    esac
  done <<< "$containers"
  if ((${#bad[@]})); then
    report containers fail "$(join ', ' "${bad[@]}")" "${#bad[@]}"
  elif ((count)); then
    report containers ok "$count containers are healthy" "$count"
  elif [[ $docker == yes ]]; then
    report containers fail "no container of $project runs"
  else
    report containers skipped "no container of $project"
  fi
}

# text VALUE: as JSON.
text() {
  local escaped=${1//\\/\\\\}
  escaped=${escaped//\"/\\\"}
  printf '"%s"' "${escaped//[[:cntrl:]]/ }"
}

# join SEPARATOR ITEM...
join() {
  local separator=$1 joined
  shift
  printf -v joined "%s$separator" "$@"
  printf '%s' "${joined%"$separator"}"
}

print_result() {
  local name items=() posted=false
  [[ -z $was_posted ]] || posted=true
  for name in "${names[@]}"; do
    if [[ -z $json ]]; then
      printf '%-8s %-12s %s\n' "${status[$name]}" "$name" "${message[$name]}"
    fi
    items+=("{\"name\":\"$name\",\"status\":\"${status[$name]}\",\"message\":$(text "${message[$name]}"),\"value\":${value[$name]:-null}}")
  done
  [[ -z $json ]] || printf '{"healthy":%s,"baseUrl":%s,"checks":[%s],"changed":[%s],"posted":%s,"dryRun":%s,"exitCode":%d}\n' \
    "$([[ $worst == 0 ]] && echo true || echo false)" "$(text "$base")" "$(join , "${items[@]}")" \
    "$( ((${#changed[@]} == 0)) || join , "${changed[@]/*/\"&\"}")" "$posted" \
    "$([[ -n $dry_run ]] && echo true || echo false)" "$1"
}

# alert NAME firing|resolved, as one of Alertmanager's webhook
alert() {
  local name=$1 title=HealthCheck${1^} severity=critical end=0001-01-01T00:00:00Z extra=''
  case $name in connections | queue) severity=warning ;; esac
  [[ $2 == firing ]] || printf -v end '%(%FT%TZ)T' "$now"
  [[ -z ${value[$name]} ]] || extra=",\"value\":\"${value[$name]}\""
  printf '{"status":"%s","labels":{"alertname":"%s","severity":"%s","instance":%s},"annotations":{"summary":%s%s},"startsAt":"%s","endsAt":"%s","fingerprint":"%s"}' \
    "$2" "$title" "$severity" "$(text "$base")" "$(text "${message[$name]}")" "$extra" \
    "$(printf '%(%FT%TZ)T' "${since[$name]}")" "$end" \
    "$(printf '%s %s' "$title" "$base" | cksum | tr -cd '0-9')"
}

notification() {
  local name alerts=() lines=() state overall=resolved
  for name in "${changed[@]}"; do
    state=firing
    [[ ${status[$name]} == fail ]] || state=resolved
    alerts+=("$(alert "$name" "$state")")
    lines+=("$([[ $state == firing ]] && echo FAILS || echo OK): $name: ${message[$name]}")
  done
  [[ $worst == 0 ]] || overall=firing
  printf '{"version":"4","status":"%s","receiver":"health-check","truncatedAlerts":0,"groupKey":"health-check","groupLabels":{},"commonLabels":{},"commonAnnotations":{},"externalURL":%s,"text":%s,"alerts":[%s]}' \
    "$overall" "$(text "$base")" "$(text "$base: $(join '; ' "${lines[@]}")")" "$(join , "${alerts[@]}")"
}

# The URL and the token are secrets: they go to curl by its standard input, not its arguments.
post() {
  {
    printf 'url = %s\n' "$(text "$webhook")"
    [[ -z $webhook_token ]] ||
      printf 'header = %s\n' "$(text "Authorization: Bearer $(< "$webhook_token")")"
  } | curl --config - --silent --output /dev/null --fail --max-time "$timeout" \
    --header 'Content-Type: application/json' --data-binary "$1"
}

read_state() {
  local name began
  [[ -r $state ]] || return 0
  while read -r name began; do
    if [[ " ${names[*]} " == *" $name "* ]] && is_number "$began"; then
      failing[$name]=$began
    fi
  done < "$state"
}

write_state() {
  local name
  for name in "${!failing[@]}"; do
    printf '%s %s\n' "$name" "${failing[$name]}"
  done > "$state.new" && mv "$state.new" "$state"
}

if [[ -z $state ]]; then
  directory=${STATE_DIRECTORY:-${XDG_STATE_HOME:-${HOME:-/var/tmp}/.local/state}/yujian}
  state=$directory/health-check-$(printf '%s' "$base" | cksum | tr -cd '0-9')
fi
if [[ -z $dry_run ]]; then
  { mkdir -p "$(dirname "$state")" && touch "$state.lock"; } 2> /dev/null ||
    fail 73 "$state cannot be written"
  exec 9>> "$state.lock"
  flock --nonblock 9 || fail 75 "another run for $base has not ended yet"
fi

check_http
check_websocket
check_limit connections "$connections" "$max_connections" "connections"
check_queue
check_containers

read_state
printf -v now '%(%s)T' -1
worst=0 changed=() was_posted=''
for index in "${!names[@]}"; do
  name=${names[$index]}
  since[$name]=${failing[$name]:-$now}
  if [[ ${status[$name]} == fail ]]; then
    ((worst)) || worst=$((11 + index))
    [[ -n ${failing[$name]-} ]] || changed+=("$name")
  elif [[ ${status[$name]} == ok && -n ${failing[$name]-} ]]; then
    changed+=("$name")
  fi
done

exit_code=$worst
if ((${#changed[@]})); then
  body=$(notification)
  if [[ -n $dry_run ]]; then
    [[ -n $json || -z $webhook ]] || echo "would post: $body"
  else
    if [[ -n $webhook ]]; then
      if post "$body"; then
        was_posted=1
      else
        echo "health-check.sh: the webhook could not be posted; it is tried again at the next run" >&2
        ((exit_code)) || exit_code=74
      fi
    fi
    if [[ -z $webhook || -n $was_posted ]]; then
      for name in "${changed[@]}"; do
        if [[ ${status[$name]} == fail ]]; then failing[$name]=$now; else unset "failing[$name]"; fi
      done
      write_state || fail 73 "$state cannot be written"
    fi
  fi
fi
[[ -n $quiet && $exit_code == 0 && ${#changed[@]} == 0 ]] || print_result "$exit_code"
exit "$exit_code"
