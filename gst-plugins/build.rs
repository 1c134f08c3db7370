//! Adds the commit to the plugin's version, as `gst-inspect-1.0` shows it, if the build sets `FACEPIPE_COMMIT`.
//! Git is not asked, or each commit would compile the plugin and all that contains it again.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=FACEPIPE_COMMIT");
    let commit = env::var("FACEPIPE_COMMIT").ok().filter(|commit| !commit.is_empty());
    println!("cargo::rustc-env=FACEPIPE_COMMIT={}", commit.as_deref().unwrap_or("development"));
}
