// SPDX-License-Identifier: MPL-2.0

//! The part of a segment: its encoded packets with their times to the nanosecond, which no container
//! of films keeps, and behind them what the packets are.
//!
//! ```text
//! "starsr-part 1\n", packets, about (JSON), its SHA-256, bytes of about (u32), "starsr-part-end\n"
//! a packet: bytes (u32), flags (u32), pts, dts, duration (i64, ns of running time), its bytes
//! ```
//! All numbers are little-endian. A time that is not known is the least number.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::store::{self, hex};

const BEGIN: &[u8] = b"starsr-part 1\n";
const END: &[u8] = b"starsr-part-end\n";
const HEAD: usize = 32;
const DIGEST: usize = 32;
const NONE: i64 = i64::MIN;
/// The most bytes of a packet, and of what is said about a part.
const LARGEST: u32 = 1 << 30;
const LONGEST: u32 = 1 << 20;

/// An encoded frame, at times of the film.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub pts: Option<i64>,
    pub dts: Option<i64>,
    pub duration: Option<i64>,
    /// GStreamer's flags of the buffer.
    pub flags: u32,
    pub bytes: Vec<u8>,
}

/// What a part holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// SHA-256 of the plan.
    pub plan: String,
    pub segment: usize,
    /// Frames that were encoded, and the packets that they became.
    pub frames: u64,
    pub packets: u64,
    /// Caps of the packets, and of the frames that were encoded.
    pub caps: String,
    pub encoded: String,
    /// What the model ran on: on another machine frames may differ in their last bits.
    pub machine: String,
    /// Runs of the denoiser for a window, which tell how it was divided into tiles.
    pub evaluations: u64,
    /// Frames that were not restored though the model failed.
    pub bypassed: u64,
    /// Milliseconds that the work took.
    pub milliseconds: u64,
    /// SHA-256 of all packets.
    pub sha256: String,
}

/// Writes a part.
pub struct Writer {
    file: BufWriter<NamedTempFile>,
    hash: Sha256,
    pub packets: u64,
}

impl Writer {
    /// Begins the part at `target`.
    pub fn new(target: &Path) -> io::Result<Self> {
        let mut file = BufWriter::new(store::unfinished(target)?);
        file.write_all(BEGIN)?;
        Ok(Self { file, hash: Sha256::new(), packets: 0 })
    }

    pub fn push(&mut self, packet: &Packet) -> io::Result<()> {
        let bytes = u32::try_from(packet.bytes.len()).ok().filter(|bytes| *bytes <= LARGEST);
        let bytes = bytes.ok_or(io::ErrorKind::FileTooLarge)?;
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(&bytes.to_le_bytes());
        head[4..8].copy_from_slice(&packet.flags.to_le_bytes());
        let times = [packet.pts, packet.dts, packet.duration];
        for (to, time) in head[8..].chunks_exact_mut(8).zip(times) {
            to.copy_from_slice(&time.unwrap_or(NONE).to_le_bytes());
        }
        self.packets += 1;
        for bytes in [&head[..], &packet.bytes] {
            self.hash.update(bytes);
            self.file.write_all(bytes)?;
        }
        Ok(())
    }

    /// Completes the part; `about` gets the hash. Gives whether there was none at `target` yet.
    pub fn finish(self, mut about: About, target: &Path) -> io::Result<bool> {
        let Self { mut file, hash, packets } = self;
        (about.sha256, about.packets) = (hex(hash), packets);
        let about = serde_json::to_vec(&about)?;
        file.write_all(&about)?;
        file.write_all(&Sha256::digest(&about))?;
        file.write_all(&(about.len() as u32).to_le_bytes())?;
        file.write_all(END)?;
        store::place_new(file.into_inner().map_err(|error| error.into_error())?, target)
    }
}

/// Reads a part.
pub struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    pub about: About,
    hash: Sha256,
    left: u64,
}

impl Reader {
    /// Opens the part at `path`; `None` where there is none.
    pub fn open(path: &Path) -> Result<Option<Self>, String> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(store::failed(path, &error)),
        };
        let mut file = BufReader::new(file);
        let read = |file: &mut BufReader<File>| {
            let mut begin = [0; BEGIN.len()];
            file.read_exact(&mut begin)?;
            let tail = END.len() as i64 + 4;
            let end = file.seek(SeekFrom::End(-tail))?;
            let (mut length, mut last) = ([0; 4], [0; END.len()]);
            file.read_exact(&mut length)?;
            file.read_exact(&mut last)?;
            let length = u32::from_le_bytes(length);
            if begin != BEGIN || last != END || length > LONGEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let place = end.checked_sub(u64::from(length) + DIGEST as u64);
            let place = place.ok_or(io::ErrorKind::InvalidData)?;
            file.seek(SeekFrom::Start(place))?;
            let (mut about, mut digest) = (vec![0; length as usize], [0; DIGEST]);
            file.read_exact(&mut about)?;
            file.read_exact(&mut digest)?;
            if Sha256::digest(&about)[..] != digest {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let left = place.checked_sub(BEGIN.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
            file.seek(SeekFrom::Start(BEGIN.len() as u64))?;
            Ok((serde_json::from_slice(&about)?, left))
        };
        let (about, left) = read(&mut file).map_err(|error| Self::damaged(path, &error))?;
        let path = path.to_owned();
        Ok(Some(Self { path, file, about, hash: Sha256::new(), left }))
    }

    /// The sentence for a part that cannot be read for `error`.
    fn damaged(path: &Path, error: &io::Error) -> String {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput => format!("{}: is damaged", path.display()),
            _ => store::failed(path, error),
        }
    }

    /// The next packet; `None` at the end of an unaltered part.
    pub fn next(&mut self) -> Result<Option<Packet>, String> {
        if self.left == 0 {
            let hash = hex(std::mem::take(&mut self.hash));
            return if hash == self.about.sha256 {
                Ok(None)
            } else {
                Err(format!("{}: is damaged", self.path.display()))
            };
        }
        let mut read = || {
            let mut head = [0; HEAD];
            self.file.read_exact(&mut head)?;
            let number = |at: usize| head[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
            let time = |at: usize| {
                let time = head[at..at + 8].try_into().map_or(NONE, i64::from_le_bytes);
                (time != NONE).then_some(time)
            };
            let length = number(0);
            let all = HEAD as u64 + u64::from(length);
            self.left = self.left.checked_sub(all).ok_or(io::ErrorKind::InvalidData)?;
            let mut bytes = vec![0; length as usize];
            self.file.read_exact(&mut bytes)?;
            self.hash.update(head);
            self.hash.update(&bytes);
            let (pts, dts, duration) = (time(8), time(16), time(24));
            Ok(Packet { pts, dts, duration, flags: number(4), bytes })
        };
        read().map(Some).map_err(|error| Self::damaged(&self.path, &error))
    }

    /// Reads to the end; fails where the part is altered.
    pub fn check(mut self) -> Result<About, String> {
        while self.next()?.is_some() {}
        Ok(self.about)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(number: i64) -> Packet {
        let bytes = vec![number as u8; 10 * number as usize];
        Packet { pts: Some(number), dts: Some(-number), duration: None, flags: 8192, bytes }
    }

    fn write(path: &Path) -> bool {
        let mut writer = Writer::new(path).unwrap();
        (0..9).for_each(|number| writer.push(&packet(number)).unwrap());
        let about = About {
            plan: "1".into(),
            segment: 3,
            frames: 9,
            packets: 0,
            caps: "c".into(),
            encoded: "e".into(),
            machine: "m".into(),
            evaluations: 1,
            bypassed: 0,
            milliseconds: 1,
            sha256: String::new(),
        };
        writer.finish(about, path).unwrap()
    }

    #[test]
    fn packets_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.part");
        assert!(Reader::open(&path).unwrap().is_none());
        assert!(write(&path));
        assert!(!write(&path), "a part is not replaced");
        let mut reader = Reader::open(&path).unwrap().unwrap();
        assert_eq!((reader.about.packets, reader.about.segment), (9, 3));
        for number in 0..9 {
            assert_eq!(reader.next().unwrap(), Some(packet(number)));
        }
        assert_eq!(reader.next().unwrap(), None);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_alteration_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.part");
        write(&path);
        let whole = std::fs::read(&path).unwrap();
        let is_refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Reader::open(&path).and_then(|reader| reader.unwrap().check()).is_err()
        };
        for length in [0, 3, 14, 20, 60, whole.len() / 2, whole.len() - 20, whole.len() - 1] {
            assert!(is_refused(&whole[..length]), "{length} bytes");
        }
        let packets = BEGIN.len() + 9 * HEAD + 360;
        assert!(packets < whole.len());
        for place in 0..whole.len() {
            let mut altered = whole.clone();
            altered[place] ^= 0x10;
            assert!(is_refused(&altered), "byte {place}");
        }
        assert!(!is_refused(&whole));
    }
}
