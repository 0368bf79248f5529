#!/bin/sh
# ExecReload of yujian-presence.service: `make reload`, and notifies systemd of the master's new pid.
# Without that a new master (USR2) would be killed with the unit when the old one leaves.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
data_dir=$("$python" -m app.config --get data_dir)

# gunicorn 27 cannot pass systemd's socket on to a new master: it looks for it at descriptor 3,
# which it has closed. So with yujian-presence.socket only the workers are renewed; what the
# master itself holds changes with `systemctl restart`, while new connections wait.
signal=
pid=$(cat "$data_dir/gunicorn.pid")
if tr '\0' '\n' < "/proc/$pid/environ" | grep -q '^LISTEN_FDS='; then signal='--signal=HUP'; fi

code=0
"$python" -m workers.reload --json $signal > "$data_dir/reload.json" || code=$?
cat "$data_dir/reload.json" >&2
systemd-notify "MAINPID=$(cat "$data_dir/gunicorn.pid")"
# 3: all is new, but some connections were drained rather than handed over.
if [ "$code" -eq 3 ] && ! grep -q '"error"' "$data_dir/reload.json"; then code=0; fi
exit "$code"
