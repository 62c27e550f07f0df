// SPDX-License-Identifier: MPL-2.0

//! Who works on which segment: files, so that any shared folder will do.
//!
//! A claim is the file `SEGMENT-GENERATION`, which only one worker can create. Its owner changes its
//! content now and then. A worker that has watched it for the time of a lease, by a clock of its own,
//! and has seen no change, takes the segment over with the next generation, which again only one can
//! create. So clocks are never compared. On the machine of the owner a lock tells at once that it died.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::store::{self, failed};

/// How long a claim lasts without a sign of life, unless another time is asked for.
pub const LEASE: Duration = Duration::from_mins(1);
/// Signs of life within a lease.
const BEATS: u32 = 6;
/// Interval at which a claim's keeper looks whether it may end.
const TICK: Duration = Duration::from_millis(20);

/// What is in a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The host and the process, for people.
    pub worker: String,
    /// The running system that knows of the lock.
    pub system: String,
    /// Whether the owner holds a lock on the file.
    pub is_locked: bool,
    /// Counts up.
    pub beat: u64,
    /// Frames that are done.
    pub frames: u64,
}

impl Holder {
    /// This process, without a lock.
    fn here() -> Self {
        Self { worker: worker(), system: system(), is_locked: false, beat: 0, frames: 0 }
    }
}

/// The claims in a folder, as one worker sees them.
pub struct Claims {
    folder: PathBuf,
    lease: Duration,
    /// What was seen of others' claims, by name: the content, and since when it has not changed.
    seen: HashMap<PathBuf, (Vec<u8>, Instant)>,
    /// Frames of the present segment that are done.
    done: Arc<AtomicU64>,
}

impl Claims {
    pub fn new(folder: PathBuf, lease: Duration, done: Arc<AtomicU64>) -> Self {
        Self { folder, lease, seen: HashMap::new(), done }
    }

    /// Claims `segment`; `None` where somebody else has it, as far as is known.
    pub fn claim(&mut self, segment: usize) -> Result<Option<Claim>, String> {
        let last = latest(&self.folder, segment)?;
        let next = match last {
            None => 1,
            Some(generation) => {
                let path = path(&self.folder, segment, generation);
                if !self.is_dead(&path)? {
                    return Ok(None);
                }
                generation + 1
            }
        };
        let claim = Claim::create(&self.folder, segment, next, self.lease, &self.done)?;
        let Some(claim) = claim else { return Ok(None) };
        for old in 1..next {
            let path = path(&self.folder, segment, old);
            self.seen.remove(&path);
            let _ = fs::remove_file(path);
        }
        Ok(Some(claim))
    }

    /// Whether the owner of the claim at `path` is dead.
    fn is_dead(&mut self, path: &Path) -> Result<bool, String> {
        let content = match fs::read(path) {
            Ok(content) => content,
            // It was given back just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed(path, &error)),
        };
        let holder: Option<Holder> = serde_json::from_slice(&content).ok();
        if let Some(holder) = &holder
            && holder.is_locked
            && holder.system == system()
            && OpenOptions::new().write(true).open(path).is_ok_and(|file| file.try_lock().is_ok())
        {
            return Ok(true);
        }
        let now = Instant::now();
        let (known, since) =
            self.seen.entry(path.to_owned()).or_insert_with(|| (content.clone(), now));
        if *known != content {
            (*known, *since) = (content, now);
        }
        Ok(since.elapsed() > self.lease)
    }
}

/// All claims in `folder`, by segment. Some may be of workers that have died.
pub fn all(folder: &Path) -> Result<Vec<(usize, Option<Holder>)>, String> {
    let mut newest: HashMap<usize, u64> = HashMap::new();
    for (segment, generation) in names(folder)? {
        let known = newest.entry(segment).or_default();
        *known = generation.max(*known);
    }
    let mut claims: Vec<_> = newest
        .into_iter()
        .map(|(segment, generation)| {
            let content = fs::read(path(folder, segment, generation)).ok();
            (segment, content.and_then(|content| serde_json::from_slice(&content).ok()))
        })
        .collect();
    claims.sort_by_key(|(segment, _)| *segment);
    Ok(claims)
}

fn names(folder: &Path) -> Result<Vec<(usize, u64)>, String> {
    let entries = fs::read_dir(folder).map_err(|error| failed(folder, &error))?;
    let parse = |entry: io::Result<fs::DirEntry>| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let (segment, generation) = name.split_once('-')?;
        Some((segment.parse().ok()?, generation.parse().ok()?))
    };
    Ok(entries.filter_map(parse).collect())
}

/// The latest generation of claims on `segment`.
fn latest(folder: &Path, segment: usize) -> Result<Option<u64>, String> {
    let names = names(folder)?.into_iter();
    Ok(names.filter(|(name, _)| *name == segment).map(|(_, generation)| generation).max())
}

fn path(folder: &Path, segment: usize, generation: u64) -> PathBuf {
    folder.join(format!("{segment:06}-{generation}"))
}

/// The running system: locks say nothing about those of another one.
fn system() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// The host and the process.
fn worker() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}:{}", host.trim(), std::process::id())
}

/// A claim of this process, which is kept alive until it is dropped, and then given back.
pub struct Claim {
    path: PathBuf,
    /// Whether somebody else has taken over.
    pub is_lost: Arc<AtomicBool>,
    ends: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
}

impl Claim {
    /// `None` where somebody else was faster.
    fn create(
        folder: &Path,
        segment: usize,
        generation: u64,
        lease: Duration,
        done: &Arc<AtomicU64>,
    ) -> Result<Option<Self>, String> {
        let path = path(folder, segment, generation);
        let mut holder = Holder::here();
        let created = create_whole(&path, &mut holder).map_err(|error| failed(&path, &error))?;
        let Some(mut file) = created else { return Ok(None) };
        let (is_lost, ends) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let keeper = std::thread::spawn({
            let (folder, lost, ends, done) =
                (folder.to_owned(), is_lost.clone(), ends.clone(), done.clone());
            let path = path.clone();
            move || {
                let mut last = Instant::now();
                while !ends.load(Ordering::SeqCst) {
                    std::thread::sleep(TICK);
                    if last.elapsed() < lease / BEATS {
                        continue;
                    }
                    last = Instant::now();
                    holder.beat += 1;
                    holder.frames = done.load(Ordering::SeqCst);
                    // A store that is away for a while may come back.
                    let _ = write(&mut file, &holder);
                    let newest = latest(&folder, segment);
                    let is_taken = newest.is_ok_and(|newest| newest != Some(generation));
                    if is_taken && !path.exists() {
                        lost.store(true, Ordering::SeqCst);
                    }
                }
            }
        });
        Ok(Some(Self { path, is_lost, ends, keeper: Some(keeper) }))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
        // One that stays expires.
        let _ = fs::remove_file(&self.path);
    }
}

/// Creates the claim at `path`, locked where the file system knows locks, and with the `holder` in it;
/// `None` where there is one already.
fn create_whole(path: &Path, holder: &mut Holder) -> io::Result<Option<File>> {
    let mut file = store::unfinished(path)?;
    fill(file.as_file_mut(), holder)?;
    // A worker that is killed meanwhile leaves no claim behind that nobody can judge.
    match file.persist_noclobber(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        // Some network file systems cannot do both in one step.
        Err(_) => create_empty(path, holder),
    }
}

/// The same, except that for a moment the claim is there without its content.
fn create_empty(path: &Path, holder: &mut Holder) -> io::Result<Option<File>> {
    let file = OpenOptions::new().write(true).read(true).create_new(true).open(path);
    let mut file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        Err(error) => return Err(error),
    };
    let filled = fill(&mut file, holder).inspect_err(|_| {
        let _ = fs::remove_file(path);
    });
    filled.map(|()| Some(file))
}

/// Locks a new claim and writes the `holder` into it.
fn fill(file: &mut File, holder: &mut Holder) -> io::Result<()> {
    // Where a file system knows no locks, there are still the signs of life.
    holder.is_locked = file.try_lock().is_ok();
    write(file, holder)
}

/// Replaces the content of a claim, which keeps its length, so that no reader sees less.
fn write(file: &mut File, holder: &Holder) -> io::Result<()> {
    let mut text = serde_json::to_vec(holder)?;
    text.resize(text.len().max(512), b' ');
    file.rewind()?;
    file.write_all(&text)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(folder: &Path, lease: u64) -> Claims {
        Claims::new(folder.to_owned(), Duration::from_millis(lease), Arc::default())
    }

    /// A claim of a worker on another machine, which is dead.
    fn foreign(folder: &Path, segment: usize, generation: u64, beat: u64) -> PathBuf {
        let holder = Holder {
            worker: "elsewhere:1".into(),
            system: "another".into(),
            is_locked: true,
            beat,
            frames: 0,
        };
        let path = path(folder, segment, generation);
        fs::write(&path, serde_json::to_vec(&holder).unwrap()).unwrap();
        path
    }

    #[test]
    fn only_one_gets_a_segment() {
        let folder = tempfile::tempdir().unwrap();
        let granted: Vec<_> = std::thread::scope(|scope| {
            let wishes: Vec<_> = (0..16)
                .map(|_| scope.spawn(|| claims(folder.path(), 1000).claim(4).unwrap()))
                .collect();
            wishes.into_iter().filter_map(|wish| wish.join().unwrap()).collect()
        });
        assert_eq!(granted.len(), 1);
        let mut others = claims(folder.path(), 1000);
        assert!(others.claim(4).unwrap().is_none());
        assert!(others.claim(5).unwrap().is_some());
        drop(granted);
        assert!(others.claim(4).unwrap().is_some());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_claim_is_whole_as_soon_as_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let claimed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..50 {
                    claims(folder.path(), 1000).claim(3).unwrap().unwrap();
                }
                claimed.store(true, Ordering::SeqCst);
            });
            let path = path(folder.path(), 3, 1);
            let mut seen = 0;
            while !claimed.load(Ordering::SeqCst) {
                let Ok(content) = fs::read(&path) else { continue };
                let holder: Holder = serde_json::from_slice(&content).unwrap();
                assert!(holder.is_locked);
                seen += 1;
            }
            assert!(seen > 0, "no claim was seen");
        });
    }

    #[test]
    fn a_claim_is_made_where_files_cannot_be_renamed_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path(), 3, 1);
        let file = create_empty(&path, &mut Holder::here()).unwrap();
        assert!(claims(folder.path(), 1000).claim(3).unwrap().is_none());
        assert!(create_empty(&path, &mut Holder::here()).unwrap().is_none());
        drop(file);
        let mut others = claims(folder.path(), 1000);
        assert!(others.claim(3).unwrap().is_some(), "its owner is dead");
    }

    #[test]
    fn a_dead_worker_elsewhere_loses_its_claim_after_a_lease() {
        let folder = tempfile::tempdir().unwrap();
        foreign(folder.path(), 7, 3, 0);
        // Its clock, and so the file's time, may be an hour behind.
        let hour = std::time::SystemTime::now() - Duration::from_hours(1);
        let file = File::open(path(folder.path(), 7, 3)).unwrap();
        file.set_modified(hour).unwrap();
        let mut claims = claims(folder.path(), 200);
        assert!(claims.claim(7).unwrap().is_none(), "seen for the first time");
        foreign(folder.path(), 7, 3, 1);
        std::thread::sleep(Duration::from_millis(150));
        assert!(claims.claim(7).unwrap().is_none(), "it has changed");
        let claim = starsr_testkit::patience::patiently("the claim does not expire", || {
            std::thread::sleep(Duration::from_millis(20));
            claims.claim(7).unwrap()
        });
        assert_eq!(claim.path, path(folder.path(), 7, 4));
        assert!(!path(folder.path(), 7, 3).exists());
    }

    #[test]
    fn a_living_claim_does_not_expire() {
        let folder = tempfile::tempdir().unwrap();
        // As another machine would see it.
        let mut owner = claims(folder.path(), 600);
        let claim = owner.claim(1).unwrap().unwrap();
        let mut watcher = claims(folder.path(), 600);
        let end = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < end {
            assert!(watcher.claim(1).unwrap().is_none());
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(!claim.is_lost.load(Ordering::SeqCst));
    }

    #[test]
    fn a_worker_that_was_given_up_learns_so() {
        let folder = tempfile::tempdir().unwrap();
        let mut owner = claims(folder.path(), 60);
        let claim = owner.claim(1).unwrap().unwrap();
        foreign(folder.path(), 1, 2, 0);
        fs::remove_file(path(folder.path(), 1, 1)).unwrap();
        starsr_testkit::patience::patiently("the loss is not noticed", || {
            std::thread::sleep(Duration::from_millis(10));
            claim.is_lost.load(Ordering::SeqCst).then_some(())
        });
    }
}
