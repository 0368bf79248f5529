#!/bin/sh
# Puts the settings into a copy of the configuration and starts Prometheus with it.
set -eu

usage() {
  cat << 'END'
usage: start-prometheus.sh [--write DIRECTORY] [argument of prometheus...]

  --write DIRECTORY   write the configuration there, and start nothing

Settings (environment); what is not set is as in prometheus.yml, alerts.yml and targets/, which stay as they are:
  BACKENDS        host:port of each machine's service, between blanks
  SITES           addresses that users open, between blanks; the blackbox exporter asks for them. Without
                  it: https://API_DOMAIN/status and https://SITE_DOMAIN/, where these are set
  API_DOMAIN, SITE_DOMAIN, HTTPS_PUBLISH   as of docker-compose.yml: names, and [address:]port unless 443
  BLACKBOX        host:port of the blackbox exporter (blackbox:9115)
  CADDY_METRICS   host:port of Caddy's metrics, between blanks
  ALERTMANAGERS   host:port of each Alertmanager, between blanks
  RUNBOOK_URL     address of the runbook as a page, to whose sections the alerts link. Without it:
                  https://SITE_DOMAIN/runbook.html, where that is set
  PROMETHEUS      the program (prometheus)
END
}

fail() {
  echo "start-prometheus.sh: $1" >&2
  exit 64
}

# check NAME VALUE: it goes into quotes, and is a part of an expression of sed.
check() {
  case $2 in
    *[\"\\\|\&\$\`]* | *"
"*) fail "$1 must not hold quotes, backslashes, |, &, \$ or lines" ;;
  esac
}

# targets FILE NAME VALUE [LABEL VALUE]
targets() {
  check "$2" "$3"
  rm -f "$out/targets/$1"
  {
    echo "- targets:"
    for one in $3; do echo "    - \"$one\""; done
    [ $# -lt 5 ] || printf '  labels:\n    %s: "%s"\n' "$4" "$5"
  } > "$out/targets/$1"
}

write=
case ${1-} in
  -h | --help) usage; exit 0 ;;
  --write)
    [ -n "${2-}" ] || fail "--write needs a directory"
    write=1 out=$2
    ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
[ -n "$write" ] || out=$(mktemp -d "${TMPDIR:-/tmp}/prometheus.XXXXXX")
mkdir -p "$out/targets"

# By links: they may be edited, and Prometheus reads them again.
ln -sf "$here/prometheus.yml" "$out/prometheus.yml"
for file in "$here"/targets/*.yml; do ln -sf "$file" "$out/targets/"; done
rm -f "$out/alerts.yml"
port=${HTTPS_PUBLISH:-443}
port=:${port##*:}
[ "$port" != :443 ] || port=''
sites=${SITES-} runbook=${RUNBOOK_URL-}
if [ -z "$sites" ]; then
  sites="${API_DOMAIN:+https://$API_DOMAIN$port/status}${SITE_DOMAIN:+ https://$SITE_DOMAIN$port/}"
fi
runbook=${runbook:-${SITE_DOMAIN:+https://$SITE_DOMAIN$port/runbook.html}}
if [ -n "$runbook" ]; then
  check RUNBOOK_URL "$runbook"
  sed "s|^\( *runbook_url: \)[^#]*#|\1$runbook#|" "$here/alerts.yml" > "$out/alerts.yml"
else
  ln -sf "$here/alerts.yml" "$out/alerts.yml"
fi
blackbox=${BLACKBOX:-blackbox:9115}
check BLACKBOX "$blackbox"
if [ -z "$sites" ] && [ -n "${BLACKBOX-}" ]; then
  fail "BLACKBOX goes with SITES"
fi
[ -z "${BACKENDS-}" ] || targets backend.yml BACKENDS "$BACKENDS"
[ -z "$sites" ] || targets sites.yml SITES "$sites" exporter "$blackbox"
[ -z "${CADDY_METRICS-}" ] || targets caddy.yml CADDY_METRICS "$CADDY_METRICS"
[ -z "${ALERTMANAGERS-}" ] || targets alertmanager.yml ALERTMANAGERS "$ALERTMANAGERS"
[ -z "$write" ] || exit 0
exec "${PROMETHEUS:-prometheus}" --config.file="$out/prometheus.yml" "$@"
