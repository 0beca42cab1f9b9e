//! imageflow-cli
