//! How many files and sockets the process may have open.
use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the limit on open files as far as the system lets this process, and returns it. Shells often start programs with
/// 1,024 for the sake of such as use `select`; each connection of a caller and of a broker takes one.
pub fn raise_open_files() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit on open files stays at {before:?}");
        return before.unwrap_or(u64::MAX);
    }
    limit.maximum.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_goes_as_far_as_it_may() {
        let raised = raise_open_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(raised, limit.maximum.unwrap_or(u64::MAX));
        assert!(raised > 0);
    }
}
