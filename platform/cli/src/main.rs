//! The `imageflow` command. Everything it does is in the library, where it is tested.

/// Thousands of small records a second are allocated on one thread and freed on another, where this one is far better than
/// the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    imageflow_cli::main_with(std::env::args_os())
}
