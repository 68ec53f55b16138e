//! The command. All of it is in the library of the same name.

fn main() -> std::process::ExitCode {
    ringspan::main()
}
