//! The database.

settings! {
    /// The database.
    DatabaseConfig, DatabaseFlags {
        /// Database: sqlite://<path>, postgres://… or mysql://…
        database_url: String, "DATABASE_URL", "URL", unset "facepipe.db in the data folder",
            arg [hide_env_values = true];
        /// Connections to a database server; SQLite has its own number
        database_connections: u32 = 8, "FACEPIPE_DATABASE_CONNECTIONS", "N", in 1..=1024;
        /// Seconds that a call waits for a connection before it responds 503
        database_timeout_s: u64 = 5, "FACEPIPE_DATABASE_TIMEOUT_S", "SECONDS", in 1..=3600;
        /// Seconds that the start waits for a database server that cannot be reached yet
        database_start_timeout_s: u64 = 60, "FACEPIPE_DATABASE_START_TIMEOUT_S", "SECONDS", in 1..=86_400;
        /// Whether the start upgrades the schema; with false it waits for `facepipe-backend migrate` to have done so, for
        /// up to --database-start-timeout-s
        migrate_at_start: bool = true, "FACEPIPE_MIGRATE_AT_START", "true|false";
        /// Whether to accept a schema that is newer than this program knows, for going back by one version after an
        /// upgrade
        allow_newer_schema: bool = false, "FACEPIPE_ALLOW_NEWER_SCHEMA", "true|false";
        /// Seconds that one statement may take
        statement_timeout_s: u64 = 30, "FACEPIPE_STATEMENT_TIMEOUT_S", "SECONDS", in 1..=3600;
    }
}

/// Returns `scheme://user:password@host/path?query` without user and password, also where the query has them.
pub(super) fn without_login(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    // A password may have an unescaped `@`.
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let Some((place, query)) = rest.split_once('?') else { return format!("{scheme}://{rest}") };
    let is_login = |parameter: &&str| ["user=", "password="].iter().any(|name| parameter.starts_with(name));
    let query: Vec<&str> = query.split('&').filter(|parameter| !is_login(parameter)).collect();
    let mark = if query.is_empty() { "" } else { "?" };
    format!("{scheme}://{place}{mark}{}", query.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_of_databases_are_not_shown() {
        assert_eq!(
            without_login("postgres://u:p@ss@h/db?password=p&sslmode=require"),
            "postgres://h/db?sslmode=require"
        );
        assert_eq!(without_login("mysql://token@h/db"), "mysql://h/db");
        assert_eq!(without_login("sqlite:///x.db"), "sqlite:///x.db");
    }
}
