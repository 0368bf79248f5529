#!/usr/bin/env bash
# Starts containers that the engine could not start; for cron and deploy/systemd/yujian-containers.timer.
name=start-containers.sh
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat << 'END'
usage: scripts/start-containers.sh [--dry-run]

After it was restarted, or when `net` has died, the engine starts containers in any order: a backend
cannot join `net` before that runs. It tries once, and leaves the backend ended. This starts what has
ended so, and nothing else: no container that was stopped by hand, and none during a deployment.

options:
  --dry-run    say what would be started
  -h, --help

exit codes:
  0   all that was to be started runs, or there was nothing to do
  1   a container cannot be started, or the engine does not answer
  64  wrong usage
END
}

dry_run=''
while (($#)); do
  case $1 in
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit 0 ;;
    *) die 64 "unknown argument $1; see --help" ;;
  esac
  shift
done
said=$(check_docker) || die 1 "the engine does not answer: $said"
ended=$(docker compose ps --all --quiet --status exited) || die 1 "the engine does not answer"
if [[ -d $backups ]]; then
  said=$(check_backups) || die 1 "$said"
  exec 9> "$backups/.lock"
  flock --nonblock 9 || exit 0 # a deployment sees to it
fi
lock_deployment docker || {
  (($? != 75)) || exit 0
  die 1 "$not_locked"
}
result=0
for one in $ended; do
  # What was stopped by hand, or has ended by itself, has no error.
  IFS=$'\t' read -r policy container error < <(docker inspect --format \
    '{{.HostConfig.RestartPolicy.Name}}{{"\t"}}{{.Name}}{{"\t"}}{{.State.Error}}' "$one") || true
  [[ -n $error && ${policy:-no} != no ]] || continue
  if [[ -n $dry_run ]]; then
    say "would start ${container#/}: $error"
  elif said=$(docker start "$one" 2>&1); then
    say "started ${container#/}: $error"
  else
    say "cannot start ${container#/}: $said; ./deploy-websocket.sh makes a new one"
    result=1
  fi
done
exit "$result"
