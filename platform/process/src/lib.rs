//! imageflow-process
