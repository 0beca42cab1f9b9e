//! The `imageflow` command. Everything it does is in the library, where it is tested.

/// Thousands of small records a second are allocated on one thread and freed on another, and a burst of them is to leave no
/// memory behind: librdkafka allocates with it, too. How eager it is stands in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    imageflow_cli::main_with(std::env::args_os())
}
