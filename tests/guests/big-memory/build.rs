//! 300 MiB of memory from the start.

fn main() {
    let bytes = 300 * 1024 * 1024;
    println!("cargo::rustc-link-arg-cdylib=--initial-memory={bytes}");
}
