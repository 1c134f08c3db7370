#!/usr/bin/env bash
# Starts PostgreSQL and MariaDB for tests, as an unprivileged user, on free ports, in a folder of their own:
#
#     eval "$(scripts/databases.sh start)"    sets FACEPIPE_TEST_POSTGRES, FACEPIPE_TEST_MYSQL, FACEPIPE_TEST_DATABASES
#     scripts/databases.sh stop               stops them and removes the folder ($FACEPIPE_TEST_DATABASES)
#     scripts/databases.sh restart-postgres   makes PostgreSQL close its connections and restart
#
# The two variables are URLs without a database: a test creates its own. `start postgres` and `start mariadb` start only
# that one, for a test that restarts it.
set -euo pipefail

user=facepipe

as_unprivileged() {
    if ((EUID == 0)); then
        # Database servers refuse to run as root.
        setpriv --reuid=nobody --regid=nogroup --clear-groups -- env HOME="$folder" "$@" 3>&-
    else
        # A server that kept the descriptor would keep the reader of this script's output waiting.
        "$@" 3>&-
    fi
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

start_postgres() {
    local programs port
    programs=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -1)
    port=$(free_port)
    as_unprivileged "$programs/initdb" -D "$folder/postgres" -U "$user" -A trust -E UTF8 --locale=C.UTF-8 --no-sync
    # A test machine's crash may lose test data; a killed server may not, with or without fsync.
    as_unprivileged "$programs/pg_ctl" -D "$folder/postgres" -w -t 60 -l "$folder/postgres.log" start -o \
        "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories=$folder -c max_connections=400 -c fsync=off"
    echo "export FACEPIPE_TEST_POSTGRES=postgres://$user@127.0.0.1:$port" >&3
}

start_mariadb() {
    local port server=/usr/sbin/mariadbd
    port=$(free_port)
    as_unprivileged mariadb-install-db --no-defaults --datadir="$folder/mariadb" --skip-test-db \
        --auth-root-authentication-method=normal
    # The server reads one statement per line.
    printf '%s\n' "CREATE USER '$user'@'%';" "GRANT ALL ON *.* TO '$user'@'%';" >"$folder/users.sql"
    as_unprivileged "$server" --no-defaults --datadir="$folder/mariadb" --port="$port" --bind-address=127.0.0.1 \
        --socket="$folder/mariadb.sock" --pid-file="$folder/mariadb.pid" --init-file="$folder/users.sql" \
        --max-connections=400 --innodb-flush-log-at-trx-commit=2 --skip-name-resolve \
        --log-error="$folder/mariadb.log" </dev/null >/dev/null 2>&1 3>&- &
    for _ in $(seq 120); do
        if mariadb --no-defaults -h 127.0.0.1 -P "$port" -u "$user" -e 'SELECT 1' >/dev/null 2>&1; then
            echo "export FACEPIPE_TEST_MYSQL=mysql://$user@127.0.0.1:$port" >&3
            return
        fi
        sleep 0.5
    done
    cat "$folder/mariadb.log" >&2
    echo "MariaDB did not start." >&2
    return 1
}

start() {
    local engines=("$@") engine
    ((${#engines[@]})) || engines=(postgres mariadb)
    folder=$(mktemp -d "${TMPDIR:-/tmp}/facepipe-databases.XXXXXX")
    chmod 755 "$folder"
    if ((EUID == 0)); then chown nobody:nogroup "$folder"; fi
    echo "export FACEPIPE_TEST_DATABASES=$folder" >&3
    for engine in "${engines[@]}"; do "start_$engine"; done
}

restart_postgres() {
    folder=${FACEPIPE_TEST_DATABASES:?is not set: nothing was started}
    local programs
    programs=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -1)
    as_unprivileged "$programs/pg_ctl" -D "$folder/postgres" -w -t 60 -m fast -l "$folder/postgres.log" restart
}

stop() {
    folder=${FACEPIPE_TEST_DATABASES:?is not set: nothing was started}
    local programs
    programs=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -1)
    as_unprivileged "$programs/pg_ctl" -D "$folder/postgres" -m immediate stop >/dev/null 2>&1 || true
    if [[ -s $folder/mariadb.pid ]]; then kill -9 "$(<"$folder/mariadb.pid")" 2>/dev/null || true; fi
    sleep 0.2
    rm -rf "$folder"
}

case ${1:-} in
    # Not `start 3>&1 >&2`: the shell would keep a copy of the descriptor, and the servers would inherit it.
    start) exec 3>&1 >&2; start "${@:2}" ;;
    stop) stop ;;
    restart-postgres) restart_postgres ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
