#!/usr/bin/env bash
# up.sh [--secrets-only] [OPTION…]
# Makes the secrets that are missing in deploy/secrets, builds the images, starts compose.yaml, and waits until everything is
# healthy. Repeating it changes only what differs. Options are those of `docker compose up`.
set -euo pipefail
cd "$(dirname "$0")"

# The folder is closed to others, its files are open: they are mounted one by one, for users of other numbers.
umask 077
mkdir -p secrets
secret() {
    [[ -s secrets/$1 ]] && return
    cat >"secrets/$1.new"
    chmod 444 "secrets/$1.new"
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

docker compose --project-directory deploy down    stops it; with --volumes, removes everything that it has
END
