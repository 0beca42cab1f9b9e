//! The `imageflow` command. Everything it does is in the library, where it is tested.
fn main() -> std::process::ExitCode {
    imageflow_cli::main_with(std::env::args_os())
}
