//! The command. All of it is in the library of the same name.

/// Requests are allocated on one thread and freed on another, by the ten thousand a second.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    ringspan::main()
}
