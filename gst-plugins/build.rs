//! Puts the commit and its date into the plugin's metadata, as `gst-inspect-1.0` shows it.

fn main() {
    gst_plugin_version_helper::info();
}
