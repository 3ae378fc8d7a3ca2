//! A good component that serves no HTTP: it exports `wasi:cli/run`.

fn main() {
    println!("this is a command");
}
