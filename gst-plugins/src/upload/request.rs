//! Builds the request for a batch.

use bytes::Bytes;
use http::{Method, Request, Uri, header};
use http_body_util::Full;

use super::{Endpoint, Token, UploadError, multipart, state::PendingUpload, traces::Attempt};

#[derive(Debug)]
pub(super) struct RequestBuilder {
    endpoint: Endpoint,
    uri: Uri,
}

impl RequestBuilder {
    pub fn new(backend_url: &str, endpoint: Endpoint) -> Result<Self, UploadError> {
        Ok(Self { endpoint, uri: endpoint.uri(backend_url)? })
    }

    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    pub fn build(
        &self,
        crops: &[PendingUpload],
        token: Option<&Token>,
        attempt: Option<&Attempt>,
    ) -> Result<Request<Full<Bytes>>, http::Error> {
        let crops: Vec<_> = crops.iter().map(|pending| &pending.crop).collect();
        let (content_type, body) = multipart::encode(self.endpoint, &crops);
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(self.uri.clone())
            .header(header::CONTENT_TYPE, content_type);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, token.header());
        }
        if let Some(attempt) = attempt {
            request = request.header("traceparent", attempt.traceparent());
            request = request.header("x-request-id", attempt.request_id());
        }
        request.body(Full::new(body))
    }
}
