//! The shared libraries that a program needs.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::command::command;

/// All of them, with the loader; none for a program that is linked statically, and for what is no program.
pub(super) fn of(program: &Path) -> Result<Vec<PathBuf>> {
    // It says "not a dynamic executable", and fails, where nothing is needed.
    let output = command("ldd").arg(program).output()?;
    read(&String::from_utf8_lossy(&output.stdout))
}

/// Understands lines as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`, and
/// `linux-vdso.so.1 (0x…)`, which is the kernel's.
fn read(said: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in said.lines().map(str::trim) {
        ensure!(!line.ends_with("=> not found"), "a library is missing: {line}");
        let place = line.split_once(" => ").map_or(line, |(_, place)| place);
        let place = place.split(" (0x").next().unwrap_or_default();
        if place.starts_with('/') {
            libraries.push(place.into());
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ldd_says_is_understood() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd3)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f54)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f55)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(read(said).unwrap(), expected);
        assert!(read("\tstatically linked\n").unwrap().is_empty());
        assert!(read("\tlibssl.so.3 => not found\n").is_err());
    }
}
