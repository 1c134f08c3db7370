//! What a principal may do.

use std::{fmt, str::FromStr};

/// A kind of calls. The table of routes says which one each call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Upload images for storing or sending their faces: store-results, send-results.
    Upload,
    /// Have images recognised without storing anything: get-results, verify.
    Recognise,
    /// Read people, images, detections, models and jobs.
    Read,
    /// Change people, images, unknown people and detections.
    Enrol,
    /// Train, activate models, manage the cohort and jobs.
    Operate,
    /// Everything, and managing access itself.
    Admin,
}

impl Scope {
    /// All scopes, in the order in which they are listed.
    pub const ALL: [Self; 6] =
        [Self::Upload, Self::Recognise, Self::Read, Self::Enrol, Self::Operate, Self::Admin];

    /// Returns the name in the API, in rows and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Recognise => "recognise",
            Self::Read => "read",
            Self::Enrol => "enrol",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Scopes(u8);

impl Scopes {
    /// No scope.
    pub const NONE: Self = Self(0);
    /// The scope that allows everything.
    pub const ADMIN: Self = Self(Scope::Admin.bit());

    /// Returns whether a call that needs `scope` is allowed; `admin` allows all.
    pub fn allows(self, scope: Scope) -> bool {
        self.contains(scope) || self.contains(Scope::Admin)
    }

    /// Returns whether a call that needs any of `scopes` is allowed.
    pub fn allows_any(self, scopes: Self) -> bool {
        scopes.iter().any(|scope| self.allows(scope))
    }

    /// Returns the scopes of `token` that a principal with these scopes may have.
    #[must_use]
    pub fn restricted_to(self, token: Self) -> Self {
        token.iter().filter(|scope| self.allows(*scope)).collect()
    }

    /// Returns whether the set has `scope` itself.
    pub fn contains(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// Returns whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the scopes in their order.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.contains(*scope))
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

/// Lists the names, separated by commas, as rows have them.
impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, scope) in self.iter().enumerate() {
            let separator = if number == 0 { "" } else { "," };
            write!(f, "{separator}{}", scope.name())?;
        }
        Ok(())
    }
}

/// A name that is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("has {0:?}, which is no scope: there are upload, recognise, read, enrol, operate and admin")]
pub struct InvalidScope(pub String);

impl FromStr for Scope {
    type Err = InvalidScope;

    fn from_str(name: &str) -> Result<Self, InvalidScope> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.name() == name)
            .ok_or_else(|| InvalidScope(name.chars().take(32).collect()))
    }
}

impl FromStr for Scopes {
    type Err = InvalidScope;

    fn from_str(text: &str) -> Result<Self, InvalidScope> {
        text.split(',').filter(|name| !name.is_empty()).map(str::parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_written_as_they_are_read() {
        for scopes in ["", "upload", "upload,recognise", "read,enrol,operate", "admin"] {
            assert_eq!(scopes.parse::<Scopes>().unwrap().to_string(), scopes);
        }
        assert_eq!("read,upload,read".parse::<Scopes>().unwrap().to_string(), "upload,read");
        let error = "read,wriet".parse::<Scopes>().unwrap_err().to_string();
        assert!(error.contains("wriet") && error.contains("operate"), "{error}");
    }

    #[test]
    fn only_admin_implies_other_scopes() {
        let of = |text: &str| text.parse::<Scopes>().unwrap();
        for scope in Scope::ALL {
            assert!(Scopes::ADMIN.allows(scope));
            let alone = Scopes::from_iter([scope]);
            for other in Scope::ALL {
                assert_eq!(alone.allows(other), scope == other || scope == Scope::Admin);
            }
        }
        assert_eq!(of("upload,read").restricted_to(of("read,operate")), of("read"));
        assert_eq!(Scopes::ADMIN.restricted_to(of("read,operate")), of("read,operate"));
        assert!(of("read").allows_any(of("read,enrol")) && !of("upload").allows_any(of("read,enrol")));
    }
}
