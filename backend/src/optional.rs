//! Parts that a build may leave out, and what is said where they are asked for.

use crate::config_errors::config_error;

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// As in "built without …".
    name: &'static str,
    /// The feature of Cargo's that has it.
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

/// What sends spans to a collector.
pub const TRACES: Part =
    Part { name: "OpenTelemetry traces", feature: "traces", here: cfg!(feature = "traces") };

impl Part {
    /// Asks for the part on behalf of a setting that names `value`, which is shown: no password may be in it.
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
