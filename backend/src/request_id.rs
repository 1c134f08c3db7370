//! Request ids: in log lines, in the response and in the client's records.

use std::{fmt, sync::Arc};

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

/// The header of requests and responses.
pub const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Maximum length of a client's id, characters.
const MAX_CHARACTERS: usize = 128;

tokio::task_local! {
    static CURRENT: RequestId;
}

/// The id of one request: 1 to 128 letters, digits, `-`, `_` and `.`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Returns the client's id, or a new one if that is missing or not safe in a log line.
    pub fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(HEADER).and_then(|value| value.to_str().ok());
        match given.filter(|text| is_safe(text)) {
            Some(text) => Self(text.into()),
            None => Self(Uuid::now_v7().to_string().into()),
        }
    }

    /// Returns the id of the current request.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Runs the handling of the request.
    pub async fn scope<F: Future>(self, answering: F) -> F::Output {
        CURRENT.scope(self, answering).await
    }

    /// Returns the header's value.
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0).ok()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_safe(text: &str) -> bool {
    (1..=MAX_CHARACTERS).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &[u8]) -> String {
        let headers = HeaderMap::from_iter([(HEADER, HeaderValue::from_bytes(value).unwrap())]);
        RequestId::of(&headers).to_string()
    }

    #[test]
    fn safe_ids_of_clients_are_used() {
        let longest = "x".repeat(MAX_CHARACTERS);
        for good in ["a", "Edge-7_2024.05", "0190f5a2-7c1e-7b6e-9a51-3d1c5b0f8e11", &longest] {
            assert_eq!(of(good.as_bytes()), good);
        }
    }

    #[test]
    fn other_requests_get_a_new_id() {
        let too_long = "x".repeat(MAX_CHARACTERS + 1);
        for bad in ["", "a b", "a\tb", "a\"b", "a{b}", "a/b", "ä", &too_long] {
            let id = of(bad.as_bytes());
            assert!(id != *bad && is_safe(&id), "{bad}: {id}");
        }
        let none = HeaderMap::new();
        assert_ne!(RequestId::of(&none), RequestId::of(&none));
    }
}
