//! imageflow-gateway
