#!/bin/sh
# Puts the settings into a copy of alertmanager.yml and starts Alertmanager with it.
set -eu

usage() {
  cat << 'END'
usage: start-alertmanager.sh [--print] [argument of alertmanager...]

  --print   write the configuration to stdout, and start nothing

Settings (environment):
  ALERT_WEBHOOK_URL       where alerts are posted; empty: only to the service's clients
  ALERT_WEBHOOK_URL_FILE  a file that holds it, where it is kept as a secret; an empty file does not count
  BACKEND_URL             the service (http://backend:3001)
  PUBLISH_TOKEN_FILE      file with the service's PUBLISH_TOKEN (/run/secrets/publish_token)
  PUBLISH_TOKEN           the token itself, where the file is missing or empty; it is written to a private file
  ALERTMANAGER            the program (alertmanager, or Debian's prometheus-alertmanager)
END
}

fail() {
  echo "start-alertmanager.sh: $1" >&2
  exit 64
}

# What stands for a text on the right side of sed's s|||, within a double-quoted YAML text.
quoted() {
  printf '%s' "$1" | sed 's/[\\"]/\\&/g; s/[\\&|]/\\&/g'
}

# $1: name of the setting, $2: its value
check_url() {
  case $2 in
    http://?* | https://?*) ;;
    *) fail "$1 must begin with http:// or https://" ;;
  esac
  case $2 in
    *[[:space:]]*) fail "$1 must not hold blanks" ;;
  esac
}

render() {
  if [ -n "$webhook" ]; then
    first="s|\"http://alert-webhook\\.invalid/\"|\"$(quoted "$webhook")\"|"
  else
    first='/# webhook {/,/# webhook }/d'
  fi
  sed -e "$first" \
    -e "s|http://backend:3001/hooks|$(quoted "$backend")/hooks|" \
    -e "s|/run/secrets/publish_token\$|\"$(quoted "$token_file")\"|" \
    -e '/^#/d; /^ *# webhook [{}]$/d' "$here/alertmanager.yml"
}

print=
case ${1-} in
  -h | --help) usage; exit 0 ;;
  --print) print=1; shift ;;
esac

here=$(dirname "$0")
webhook=${ALERT_WEBHOOK_URL-}
if [ -n "${ALERT_WEBHOOK_URL_FILE-}" ]; then
  [ -r "$ALERT_WEBHOOK_URL_FILE" ] || fail "ALERT_WEBHOOK_URL_FILE cannot be read"
  kept=$(cat "$ALERT_WEBHOOK_URL_FILE")
  webhook=${kept:-$webhook}
fi
[ -z "$webhook" ] || check_url ALERT_WEBHOOK_URL "$webhook"
backend=${BACKEND_URL:-http://backend:3001}
backend=${backend%/}
check_url BACKEND_URL "$backend"
token_file=${PUBLISH_TOKEN_FILE:-/run/secrets/publish_token}

if [ -n "$print" ]; then
  render
  exit
fi

umask 077
private=$(mktemp -d "${TMPDIR:-/tmp}/alertmanager.XXXXXX")
if [ ! -s "$token_file" ] && [ -n "${PUBLISH_TOKEN-}" ]; then
  token_file=$private/publish_token
  printf '%s' "$PUBLISH_TOKEN" > "$token_file"
fi
[ -s "$token_file" ] && [ -r "$token_file" ] ||
  echo "start-alertmanager.sh: clients see no alerts: neither PUBLISH_TOKEN nor $token_file has a token" >&2
render > "$private/alertmanager.yml"

program=${ALERTMANAGER-}
if [ -z "$program" ]; then
  program=alertmanager
  command -v "$program" > /dev/null || program=prometheus-alertmanager
fi
unset PUBLISH_TOKEN ALERT_WEBHOOK_URL
exec "$program" --config.file="$private/alertmanager.yml" "$@"
