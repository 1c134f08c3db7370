//! Checks requests to a server without tokens: they must come from its own machine, and not from web pages of other
//! origins, which a browser on this machine may be showing.

use std::net::IpAddr;

use actix_web::{
    dev::ServiceRequest,
    http::header::{self, HeaderValue},
};

use crate::error::ApiError;

/// Headers that proxies add. Behind a proxy on this machine, everybody's requests come from here.
const OF_PROXIES: [&str; 6] =
    ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via", "forwarded"];

/// Checks that a request comes from this machine, not through a proxy, that it names this machine, and that it is of no page of
/// another origin than the server's own and `origins`.
///
/// # Errors
/// [`ApiError::ForeignHost`], [`ApiError::ForeignOrigin`].
pub fn check(request: &ServiceRequest, origins: &[String]) -> Result<(), ApiError> {
    let is_from_elsewhere = request.peer_addr().is_some_and(|peer| !peer.ip().to_canonical().is_loopback());
    if is_from_elsewhere || OF_PROXIES.iter().any(|name| request.headers().contains_key(*name)) {
        return Err(ApiError::ForeignHost);
    }
    // HTTP/2 has the host in the URI.
    let authority = request.uri().authority().map(|authority| authority.as_str());
    let hosts: Vec<&str> = request.headers().get_all(header::HOST).map(text).chain(authority).collect();
    // By a foreign name that leads to this machine, a page reaches a server behind its browser (DNS rebinding).
    // Browsers always name a host.
    if !hosts.iter().all(|host| is_of_this_machine(host)) {
        return Err(ApiError::ForeignHost);
    }
    let is_own = |origin: &str| {
        let sent = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        sent.is_some_and(|sent| hosts.iter().any(|host| host.eq_ignore_ascii_case(sent)))
            || origins.iter().any(|allowed| allowed == origin)
    };
    if request.headers().get_all(header::ORIGIN).map(text).all(is_own) {
        Ok(())
    } else {
        Err(ApiError::ForeignOrigin)
    }
}

fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or_default()
}

/// Returns whether a host, with or without a port, is this machine.
fn is_of_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(address, _)| address),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    if let Ok(address) = name.parse::<IpAddr>() {
        return address.to_canonical().is_loopback();
    }
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn only_names_of_this_machine_are_accepted() {
        for own in [
            "localhost",
            "LOCALHOST:8080",
            "localhost.:80",
            "faces.localhost:8080",
            "127.0.0.1",
            "127.8.0.1:8080",
            "[::1]:8080",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(is_of_this_machine(own), "{own}");
        }
        for other in [
            "",
            "x",
            "example.org:8080",
            "localhost.example.org",
            "127.0.0.1.nip.io",
            "10.0.0.1:8080",
            "0.0.0.0:8080",
            "[::]:8080",
            "[fe80::1]",
            "notlocalhost",
            "127.0.0.1@example.org",
        ] {
            assert!(!is_of_this_machine(other), "{other}");
        }
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let origins = ["https://dashboard.example".to_owned()];
        let outcome = |host: &'static str, origin: Option<&'static str>| {
            let mut request = TestRequest::post().insert_header((header::HOST, host));
            if let Some(origin) = origin {
                request = request.insert_header((header::ORIGIN, origin));
            }
            check(&request.to_srv_request(), &origins).map_err(|error| error.code())
        };
        for (host, origin, expected) in [
            ("localhost:8080", None, Ok(())),
            ("localhost:8080", Some("http://localhost:8080"), Ok(())),
            ("localhost:8080", Some("https://dashboard.example"), Ok(())),
            ("localhost:8080", Some("http://localhost:3000"), Err("foreign_origin")),
            ("localhost:8080", Some("http://evil.example"), Err("foreign_origin")),
            ("localhost:8080", Some("null"), Err("foreign_origin")),
            ("evil.example:8080", None, Err("foreign_host")),
            ("evil.example:8080", Some("http://evil.example:8080"), Err("foreign_host")),
        ] {
            assert_eq!(outcome(host, origin), expected, "{host} {origin:?}");
        }
    }

    #[test]
    fn peers_elsewhere_and_proxies_are_refused() {
        let outcome = |peer: &str, header: Option<&'static str>| {
            let mut request = TestRequest::get().insert_header((header::HOST, "localhost:8080"));
            request = request.peer_addr(peer.parse().unwrap());
            if let Some(header) = header {
                request = request.insert_header((header, "203.0.113.7"));
            }
            check(&request.to_srv_request(), &[]).map_err(|error| error.code())
        };
        for own in ["127.0.0.1:5000", "[::1]:5000", "[::ffff:127.0.0.1]:5000"] {
            assert_eq!(outcome(own, None), Ok(()), "{own}");
        }
        assert_eq!(outcome("192.0.2.1:5000", None), Err("foreign_host"));
        for header in OF_PROXIES {
            assert_eq!(outcome("127.0.0.1:5000", Some(header)), Err("foreign_host"), "{header}");
        }
    }
}
