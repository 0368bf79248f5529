#!/bin/sh
# Gives Grafana the password of its user `admin`, and starts it. Grafana takes it at its first start alone.
#   GRAFANA_PASSWORD_FILE   a file that holds it (/run/secrets/grafana_password); empty or missing:
#   GRAFANA_PASSWORD        the password; without it one is made at the first start
#   GRAFANA_DATA            where the made one is kept, in the file `first-password` (/var/lib/grafana)
#   GRAFANA                 the program (/run.sh, as in Grafana's image)
set -eu

password=$(cat "${GRAFANA_PASSWORD_FILE:-/run/secrets/grafana_password}" 2> /dev/null) || password=''
password=${password:-${GRAFANA_PASSWORD-}}
if [ -z "$password" ]; then
  made=${GRAFANA_DATA:-/var/lib/grafana}/first-password
  if [ ! -s "$made" ]; then
    (umask 077 && head -c 18 /dev/urandom | base64 > "$made")
  fi
  password=$(cat "$made")
  echo "start-grafana.sh: no GRAFANA_PASSWORD is set: the password of \`admin\` is in $made" >&2
fi
export GF_SECURITY_ADMIN_PASSWORD="$password"
unset GRAFANA_PASSWORD
exec "${GRAFANA:-/run.sh}" "$@"
