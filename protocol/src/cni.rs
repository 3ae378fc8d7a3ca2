//! What the CNI plugin and whoever puts it into a configuration must agree on.

/// The versions of the CNI specification that the plugin speaks. In a configuration of another one it would fail every pod.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
