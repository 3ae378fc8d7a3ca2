//! Who is the keeper of this node: one process at a time, and the one of the newest pod.
//!
//! A lock says who it is; a keeper hands it to its successor as a descriptor, so that it is never free in between. A generation says
//! who may ask for that: each pod of the keeper gets a number of its own, higher than any before, and keeps it when its container is
//! started again. So a keeper that was replaced and starts again does not take everything back.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long the lock has to be free before a keeper that was replaced takes it: the newer one may only be starting again.
const GRACE: Duration = Duration::from_secs(10);

/// The file in a pod's own folder that keeps its generation.
const GENERATION: &str = "generation";

/// What a keeper has that holds this node's endpoints.
#[derive(Debug)]
pub struct Claim {
    /// The lock. It is free when the last descriptor of it is closed.
    pub lock: File,
    /// The holder's generation.
    pub generation: u64,
}

/// Who may hold this node's endpoints.
#[derive(Debug)]
pub struct Claimant {
    path: PathBuf,
    /// The generation of this process.
    pub generation: u64,
    /// Since when the lock was found free, while a newer keeper had it last.
    free_since: Option<Instant>,
}

/// What is to be done next.
#[derive(Debug)]
pub enum Turn {
    /// This process is the keeper.
    Hold(Claim),
    /// An older keeper is: ask it.
    Ask,
    /// A newer keeper is, or was a moment ago.
    Wait,
}

/// A file that says who is the keeper cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", .path.display())]
pub struct ClaimError {
    path: PathBuf,
    error: io::Error,
}

impl Claimant {
    /// One for the node whose folder is `state`, by the generation that is kept in `instance`, the pod's own folder.
    ///
    /// # Errors
    ///
    /// Files that cannot be read or written.
    pub fn new(state: &Path, instance: &Path) -> Result<Self, ClaimError> {
        let kept = instance.join(GENERATION);
        let generation = match generation_of(instance) {
            Ok(generation) => generation,
            Err(_) => {
                let next = state.join("generation");
                let generation =
                    next_number(&next, &state.join("lock")).map_err(|error| ClaimError { path: next, error })?;
                fs::create_dir_all(instance)
                    .and_then(|()| fs::write(&kept, generation.to_string()))
                    .map_err(|error| ClaimError { path: kept, error })?;
                generation
            }
        };
        Ok(Self { path: state.join("lock"), generation, free_since: None })
    }

    /// Looks whose turn it is.
    ///
    /// # Errors
    ///
    /// A lock that cannot be opened.
    pub fn turn(&mut self) -> Result<Turn, ClaimError> {
        let turn = File::options().read(true).write(true).create(true).truncate(false).open(&self.path);
        turn.and_then(|lock| self.decide(lock)).map_err(|error| ClaimError { path: self.path.clone(), error })
    }

    fn decide(&mut self, lock: File) -> io::Result<Turn> {
        let last = number_in(&lock)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                self.free_since = None;
                // One that is not newer is refused by who holds it.
                return Ok(if last <= self.generation { Turn::Ask } else { Turn::Wait });
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let since = *self.free_since.get_or_insert_with(Instant::now);
        // Read again: whoever held it may have written since.
        if number_in(&lock)? > self.generation && since.elapsed() < GRACE {
            return Ok(Turn::Wait);
        }
        self.free_since = None;
        let claim = self.hold(lock);
        claim.declare()?;
        Ok(Turn::Hold(claim))
    }

    /// Takes a lock that is held for us already. It says so only when that is [declared](Claim::declare).
    pub fn hold(&self, lock: File) -> Claim {
        Claim { lock, generation: self.generation }
    }
}

impl Claim {
    /// Writes into the lock who holds it.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn declare(&self) -> io::Result<()> {
        write_number(&self.lock, self.generation)
    }
}

/// The generation that is kept in a pod's own folder.
///
/// # Errors
///
/// There is none.
pub fn generation_of(instance: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(instance.join(GENERATION))?;
    text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no generation")))
}

/// Counts in `path`: gives a number that was never given before, and is higher than that of who holds the lock.
fn next_number(path: &Path, lock: &Path) -> io::Result<u64> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    file.lock()?;
    let held = File::open(lock).and_then(|lock| number_in(&lock)).unwrap_or(0);
    let next = number_in(&file)?.max(held) + 1;
    write_number(&file, next)?;
    Ok(next)
}

/// 0 where there is none.
fn number_in(mut file: &File) -> io::Result<u64> {
    let mut text = String::new();
    file.rewind()?;
    file.take(32).read_to_string(&mut text)?;
    Ok(text.trim().parse().unwrap_or(0))
}

/// Always as many bytes, in one write: it is never half there.
fn write_number(file: &File, number: u64) -> io::Result<()> {
    file.write_all_at(format!("{number:020}\n").as_bytes(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(turn: Turn) -> Option<Claim> {
        match turn {
            Turn::Hold(claim) => Some(claim),
            _ => None,
        }
    }

    #[test]
    fn the_newest_pod_holds_and_an_older_one_waits() {
        let [state, first, second] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        let mut old = Claimant::new(state.path(), first.path()).unwrap();
        let claim = held(old.turn().unwrap()).unwrap();
        let mut new = Claimant::new(state.path(), second.path()).unwrap();
        assert!(new.generation > old.generation);
        assert!(matches!(new.turn().unwrap(), Turn::Ask), "the older one hands over");
        // As a descriptor that travels: the lock is never free.
        let handed = claim.lock.try_clone().unwrap();
        drop(claim);
        let mut crashed = Claimant::new(state.path(), second.path()).unwrap();
        assert!(matches!(crashed.turn().unwrap(), Turn::Ask), "it has not declared itself: it asks again");
        let claim = new.hold(handed);
        claim.declare().unwrap();
        let mut again = Claimant::new(state.path(), first.path()).unwrap();
        assert_eq!(again.generation, old.generation, "started again in the same pod");
        assert!(matches!(again.turn().unwrap(), Turn::Wait), "it does not take everything back");
        drop(claim);
        assert!(matches!(again.turn().unwrap(), Turn::Wait), "the newer one may start again");
        assert!(held(new.turn().unwrap()).is_some());
        again.free_since = Instant::now().checked_sub(GRACE);
        assert!(held(again.turn().unwrap()).is_some(), "better an old keeper than none");
    }
}
