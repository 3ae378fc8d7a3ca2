//! Where things are: guests, stores, free ports.

use std::{
    env, fs,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use anyhow::{Context, Result, ensure};

/// Ports below those that the kernel gives to outgoing connections, and above those that `pillion run` looks for by itself.
const PORTS: std::ops::Range<u32> = 12_000..32_000;

/// The cache folder of this project: guests, tools, stores.
///
/// # Errors
///
/// A user without a home.
pub fn cache() -> Result<PathBuf> {
    let from = |variable: &str| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("PILLION_CACHE")
        .or_else(|| Some(from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")))?.join("pillion")))
        .context("there is no PILLION_CACHE, XDG_CACHE_HOME or HOME to find guests in")
}

/// The built component of a guest in `tests/guests`.
///
/// # Errors
///
/// A guest that was not built.
pub fn guest(name: &str) -> Result<PathBuf> {
    let path = cache()?.join("guests").join(format!("{name}.wasm"));
    ensure!(path.is_file(), "{} is not there: `make test` builds it, tests/guests/build {name} too", path.display());
    Ok(path)
}

/// The component of a guest with a digest of its own: a custom section, which nobody reads, says which.
///
/// # Errors
///
/// A guest that was not built.
pub fn numbered(guest: &str, number: u32) -> Result<Vec<u8>> {
    let mut wasm = fs::read(self::guest(guest)?)?;
    let name = b"test";
    wasm.extend([0, u8::try_from(name.len() + 5)?, u8::try_from(name.len())?]);
    wasm.extend(name);
    wasm.extend(number.to_le_bytes());
    Ok(wasm)
}

/// The store that tests share, so that a guest is compiled once.
///
/// # Errors
///
/// A user without a home.
pub fn shared_store() -> Result<PathBuf> {
    Ok(cache()?.join("test-store"))
}

/// The store that hosts of tests share, which run as `uid`: a folder that they can reach.
///
/// # Errors
///
/// It cannot be made.
pub fn host_store(uid: u32) -> Result<PathBuf> {
    let store = env::temp_dir().join(format!("pillion-test-store-{uid}"));
    std::fs::create_dir_all(&store)?;
    std::os::unix::fs::chown(&store, Some(uid), Some(uid))?;
    Ok(store)
}

/// A port that nobody listens on, and that no other test is given.
///
/// # Errors
///
/// No free port.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (first, many) = (PORTS.start, PORTS.end - PORTS.start);
    for _ in 0..many {
        // Test programs may run at the same time: each begins elsewhere.
        let at = std::process::id().wrapping_mul(499).wrapping_add(NEXT.fetch_add(1, Relaxed)) % many;
        let port = u16::try_from(first + at)?;
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        // Where there is no IPv6, nothing is in the way there.
        let taken_v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, port))
            .is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse);
        if free && !taken_v6 {
            return Ok(port);
        }
    }
    anyhow::bail!("there is no free port in {PORTS:?}")
}
