//! TLS to MySQL and MariaDB as `ssl_mode` and `ssl_ca` of the URL demand it. MariaDB's client library ignores `ssl_mode` and
//! would connect in clear, so what it can do is checked before, and what it did after connecting.

use std::sync::Once;

use diesel::{
    ConnectionError, ConnectionResult, MysqlConnection, QueryableByName, RunQueryDsl as _, sql_types::Text,
};
use url::Url;

use crate::config_errors::config_error;

/// What a URL demands.
#[derive(Debug, Default, PartialEq, Eq)]
struct Demand {
    /// `ssl_mode`, in lower case.
    mode: Option<String>,
    /// Whether `ssl_ca` names a file of authorities.
    has_ca: bool,
}

impl Demand {
    fn of(url: &str) -> Self {
        let mut demand = Self::default();
        let Ok(url) = Url::parse(url) else { return demand };
        for (name, value) in url.query_pairs() {
            match &*name {
                "ssl_mode" => demand.mode = Some(value.to_lowercase()),
                "ssl_ca" => demand.has_ca = true,
                _ => (),
            }
        }
        demand
    }

    fn needs_tls(&self) -> bool {
        match self.mode.as_deref() {
            Some("required" | "verify_ca" | "verify_identity") => true,
            Some(_) => false,
            None => self.has_ca,
        }
    }
}

/// Checks that the client library can do what a URL demands.
///
/// # Errors
/// It would not verify the server.
pub(super) fn check_url(url: &str) -> anyhow::Result<()> {
    static WARNED: Once = Once::new();
    if mysqlclient_sys::SUPPORTS_MYSQL_SSL_MODE {
        return Ok(());
    }
    let demand = Demand::of(url);
    match demand.mode.as_deref() {
        Some(mode @ ("verify_ca" | "verify_identity")) if !demand.has_ca => {
            Err(config_error(anyhow::anyhow!(
                "database_url has ssl_mode={mode}, but this program uses MariaDB's client library, which verifies a server \
                 only with ssl_ca: add ssl_ca=<file of the server's authority>"
            )))
        }
        Some("verify_identity") => {
            WARNED.call_once(|| {
                tracing::warn!(
                    "database_url has ssl_mode=verify_identity, but MariaDB's client library does not compare host names: \
                     ssl_ca must name an authority that signs this database server's certificate only"
                );
            });
            Ok(())
        }
        _ => Ok(()),
    }
}

#[derive(QueryableByName)]
struct Status {
    #[diesel(sql_type = Text, column_name = "Value")]
    value: String,
}

/// Checks that a connection is encrypted if its URL demands it.
///
/// # Errors
/// It is not.
pub(super) fn ensure(connection: &mut MysqlConnection, url: &str) -> ConnectionResult<()> {
    if !Demand::of(url).needs_tls() {
        return Ok(());
    }
    let cipher: Vec<Status> = diesel::sql_query("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
        .load(connection)
        .map_err(ConnectionError::CouldntSetupConfiguration)?;
    if cipher.iter().any(|status| !status.value.is_empty()) {
        return Ok(());
    }
    Err(ConnectionError::BadConnection(
        "the connection is not encrypted, which ssl_mode or ssl_ca of database_url demands: the server offers no TLS, or the \
         client library needs ssl_ca=<file of the server's authority>"
            .into(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_demands_tls_by_its_mode_or_authority() {
        for (query, needs_tls) in [
            ("", false),
            ("?ssl_mode=disabled&ssl_ca=/ca.pem", false),
            ("?ssl_mode=preferred", false),
            ("?ssl_mode=REQUIRED", true),
            ("?ssl_mode=verify_identity", true),
            ("?ssl_ca=/etc/ca.pem", true),
        ] {
            assert_eq!(Demand::of(&format!("mysql://u@h/db{query}")).needs_tls(), needs_tls, "{query}");
        }
    }

    #[test]
    fn verification_that_the_client_library_ignores_is_refused() {
        let checked = check_url("mysql://u@h/db?ssl_mode=VERIFY_IDENTITY").map_err(|error| error.to_string());
        match mysqlclient_sys::SUPPORTS_MYSQL_SSL_MODE {
            true => assert_eq!(checked, Ok(())),
            false => assert!(checked.unwrap_err().contains("add ssl_ca=")),
        }
        check_url("mysql://u@h/db?ssl_mode=verify_identity&ssl_ca=/etc/ca.pem").unwrap();
        check_url("mysql://u@h/db?ssl_mode=required").unwrap();
    }
}
