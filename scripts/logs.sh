#!/usr/bin/env bash
# Shows the log of the service, wherever it goes on this machine; `make logs` calls it.
name=logs.sh
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat << 'EOF'
usage: scripts/logs.sh [--lines N] [--no-follow] [SERVICE]

Shows the newest lines of the log and goes on with what comes. By itself it finds out where that is:
the containers of docker-compose.yml, the journal of the systemd unit, or data/service.log of a
service that deploy-websocket.sh has started. `make run` shows its log itself.

  -n, --lines N    lines of the past (100)
  --no-follow      end with the newest line
  SERVICE          a container of docker-compose.yml, such as caddy (backend)

exit codes: 0 shown, 1 the log cannot be read, 64 wrong usage, 66 there is no log, 69 no Python.
EOF
}

lines=100 follow=1 service=backend
while (($#)); do
  case $1 in
    -n | --lines) lines=${2-} && shift ;;
    --no-follow) follow= ;;
    -h | --help) usage && exit ;;
    -*) usage >&2 && exit 64 ;;
    *) service=$1 ;;
  esac
  shift || true
done
is_number "$lines" || die 64 "--lines takes a number"

if runs_in_docker || [[ $service != backend ]]; then
  exec docker compose logs --tail "$lines" ${follow:+--follow} "$service"
fi
find_python
if has_unit; then
  exec journalctl --unit "$unit" --output cat --lines "$lines" ${follow:+--follow}
fi
file=$(setting data_dir)/service.log
[[ -r $file ]] || die 66 "there is no log here: no container, no systemd unit, no $file"
exec tail -n "$lines" ${follow:+-F} "$file"
