//! HEAD for every path that takes GET: the same response without the body.

use actix_web::{
    Error, HttpMessage as _, HttpRequest,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::Method,
    middleware::Next,
};

/// Marks a request that was sent as HEAD.
struct SentAsHead;

/// Routes HEAD as GET. The connection knows the method that was sent and leaves out the body; `Content-Length` is that of
/// GET.
///
/// # Errors
/// Those of the request.
pub async fn answer_head(
    mut request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    if *request.method() == Method::HEAD {
        request.extensions_mut().insert(SentAsHead);
        request.head_mut().method = Method::GET;
    }
    next.call(request).await
}

/// Returns the method that the client sent.
pub fn sent_method(request: &HttpRequest) -> Method {
    let head = request.extensions().contains::<SentAsHead>();
    if head { Method::HEAD } else { request.method().clone() }
}

/// Returns the value of `Allow` for a path with handlers for these methods.
pub fn allowed_methods(methods: &[&str]) -> String {
    let methods: Vec<String> = methods
        .iter()
        .flat_map(|&method| [Some(method), (method == "get").then_some("head")])
        .flatten()
        .map(str::to_uppercase)
        .collect();
    methods.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn get_implies_head() {
        for (handlers, allowed) in [
            (&["get"][..], "GET, HEAD"),
            (&["get", "post", "delete"], "GET, HEAD, POST, DELETE"),
            (&["post"], "POST"),
        ] {
            assert_eq!(allowed_methods(handlers), allowed);
        }
    }
}
