//! imageflow-ops
