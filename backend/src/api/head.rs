//! HEAD, wherever GET is answered: the same answer without its body.

use actix_web::{
    Error, HttpMessage as _, HttpRequest,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::Method,
    middleware::Next,
};

/// Marks a request that came as HEAD.
struct AskedForHead;

/// Has a HEAD answered as the GET of the same path. The body is left out where the answer is written, which knows the
/// method that was sent; its length is told as GET tells it.
///
/// # Errors
/// Those of the request.
pub async fn answer_head(
    mut request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    if *request.method() == Method::HEAD {
        request.extensions_mut().insert(AskedForHead);
        request.head_mut().method = Method::GET;
    }
    next.call(request).await
}

/// The method that was sent.
pub fn asked_method(request: &HttpRequest) -> Method {
    let head = request.extensions().contains::<AskedForHead>();
    if head { Method::HEAD } else { request.method().clone() }
}

/// The methods that a path takes, as `Allow` lists them, given those that it has handlers for.
pub fn with_head(methods: &str) -> String {
    let methods: Vec<&str> = methods
        .split(", ")
        .flat_map(|method| [Some(method), (method == "GET").then_some("HEAD")])
        .flatten()
        .collect();
    methods.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_takes_get_takes_head() {
        for (handlers, allowed) in
            [("GET", "GET, HEAD"), ("GET, POST, DELETE", "GET, HEAD, POST, DELETE"), ("POST", "POST")]
        {
            assert_eq!(with_head(handlers), allowed);
        }
    }
}
