//! Puts the commit and its date into the plugin's metadata, as `gst-inspect-1.0` shows it, where whoever builds says them:
//! `FACEPIPE_COMMIT` and `FACEPIPE_COMMIT_DATE` (YYYY-MM-DD). Git is not asked, or each commit would compile the plugin and all
//! that contains it again.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for (variable, otherwise) in [("FACEPIPE_COMMIT", "development"), ("FACEPIPE_COMMIT_DATE", "1970-01-01")]
    {
        println!("cargo::rerun-if-env-changed={variable}");
        let value = env::var(variable).ok().filter(|value| !value.is_empty());
        println!("cargo::rustc-env={variable}={}", value.as_deref().unwrap_or(otherwise));
    }
}
