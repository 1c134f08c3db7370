//! Parts that a build may leave out, and the error of settings that need them.

use crate::config_errors::config_error;

/// A part that a build may leave out.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Its name after "built without".
    name: &'static str,
    /// Cargo's feature that includes it.
    feature: &'static str,
    here: bool,
}

/// PostgreSQL, MySQL and MariaDB.
pub const DATABASE_SERVERS: Part = Part {
    name: "database servers (PostgreSQL, MySQL, MariaDB)",
    feature: "database-servers",
    here: cfg!(feature = "database-servers"),
};

/// S3 and Azure.
pub const OBJECT_STORES: Part = Part {
    name: "object stores (S3, Azure)",
    feature: "object-stores",
    here: cfg!(feature = "object-stores"),
};

/// The export of spans to a collector.
pub const TRACES: Part =
    Part { name: "OpenTelemetry traces", feature: "traces", here: cfg!(feature = "traces") };

impl Part {
    /// Checks that this build has the part, which a setting needs for `value`. The error shows `value`, which must
    /// therefore have no password.
    ///
    /// # Errors
    /// This program was built without it.
    pub fn needed_by(self, setting: &str, value: &str) -> anyhow::Result<()> {
        if self.here {
            return Ok(());
        }
        Err(config_error(anyhow::anyhow!(
            "{setting} names {value}, but this facepipe-backend was built without {}: build it with the feature `{}` of \
             facepipe-backend, which it has by default (`cargo build --workspace`)",
            self.name,
            self.feature
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_is_absent_is_named_with_the_setting_and_the_feature() {
        let absent = Part { here: false, ..OBJECT_STORES };
        let error = absent.needed_by("blobs_url", "s3://…").unwrap_err();
        assert!(crate::config_errors::is_config_error(&error));
        let error = error.to_string();
        for part in ["blobs_url names s3://…", "without object stores (S3, Azure)", "feature `object-stores`"]
        {
            assert!(error.contains(part), "{error}");
        }
        assert!(Part { here: true, ..absent }.needed_by("blobs_url", "s3://…").is_ok());
    }
}
