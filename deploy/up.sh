#!/usr/bin/env bash
# up.sh [--secrets-only] [OPTION…]
# Creates missing secrets in deploy/secrets, builds the images, starts compose.yaml, and waits until everything is healthy.
# Repeating it changes only what differs. OPTIONs are passed to `docker compose up`.
set -euo pipefail
cd "$(dirname "$0")"

# Only this user may enter the folder, whatever permissions git and the umask gave it. Its files are readable for all: they are
# mounted individually into containers, whose users have other ids and do not pass through the folder.
umask 077
mkdir -p secrets
chmod 700 secrets
if [[ $(stat -L -c %a secrets) != 700 ]]; then
    echo "up.sh: other users of this machine can read deploy/secrets: its file system keeps no modes. Put the checkout elsewhere" >&2
    exit 1
fi
secret() {
    [[ -s secrets/$1 ]] && return
    cat >"secrets/$1.new"
    chmod 644 "secrets/$1.new"
    mv "secrets/$1.new" "secrets/$1"
    echo "made deploy/secrets/$1"
}
random() { od -An -N 24 -t x1 /dev/urandom | tr -d ' \n'; }

secret database-password < <(random)
secret grafana-password < <(random)
secret tokens < <(printf 'admin  %s\ncamera %s\n' "$(random)" "$(random)")
password=$(<secrets/database-password)
secret backend-postgres.toml <<<"database_url = \"postgres://facepipe:$password@postgres/facepipe\""
secret backend-mysql.toml <<<"database_url = \"mysql://facepipe:$password@mysql/facepipe\""
if [[ ${1-} == --secrets-only ]]; then exit; fi

docker compose up --detach --build --wait --wait-timeout 600 "$@"
cat <<END

  http://127.0.0.1:8080        the server, and /docs in a browser; tokens: deploy/secrets/tokens
  http://127.0.0.1:3000        Grafana: admin, with the password in deploy/secrets/grafana-password
  http://127.0.0.1:9090        Prometheus

docker compose --project-directory deploy down    stops it; with --volumes, deletes all its data
END
if [[ -z ${FACEPIPE_DETECTIONS_MAX_AGE_DAYS-} ]] && ! grep -qs '^FACEPIPE_DETECTIONS_MAX_AGE_DAYS=.' .env; then
    echo
    echo "Detections are kept forever: FACEPIPE_DETECTIONS_MAX_AGE_DAYS=30 in deploy/.env keeps them for 30 days"
fi
