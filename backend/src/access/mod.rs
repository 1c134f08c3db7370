//! Access to the server: principals, their scopes and tokens. Knows neither SQL nor HTTP: the store reads and writes
//! the rows, and `api/auth.rs` admits requests.

mod control;
mod principal;
mod scopes;
mod token;
mod token_file;

pub use control::{AccessControl, TokenProblem, TokenUse};
pub use principal::{OWN_KEY, Principal, PrincipalKey, PrincipalKind, PrincipalRecord, TokenRecord};
pub use scopes::{Scope, Scopes};
pub use token::{Digest, digest_of, has_prefix, is_well_formed, new_token, token_lifetime};
pub use token_file::{Role, TokenFile, TokenFileError};
