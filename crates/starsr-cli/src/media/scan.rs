// SPDX-License-Identifier: MPL-2.0

//! How the frames of a video were made of fields, which FFmpeg's filter `idet` finds out.

use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::AtomicU32;

use super::ffmpeg::{Words, ffmpeg, file, wait};
use crate::interrupts::Stop;

/// Seconds that are looked at: enough for a film with a still beginning.
const LENGTH: &str = "120";
/// Share of frames with a repeated field that telecine leaves: 2 of 5, less some that are not seen.
const TELECINED: std::ops::Range<f64> = 0.25..0.5;
/// Share of frames from which on what is called interlaced is not.
const PROGRESSIVE: f64 = 0.9;

/// What the fields of frames are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// Of one moment.
    Progressive,
    /// Of two moments.
    Interlaced,
    /// Those of 24 frames a second, spread over 30.
    Telecined,
}

impl Scan {
    /// Looks at a video of `input`, the stream at `index`, which is called interlaced or not. `None`
    /// where FFmpeg cannot.
    pub fn of(
        input: &Path,
        index: u64,
        is_called_interlaced: bool,
        interrupts: &AtomicU32,
    ) -> Result<Option<Self>, Stop> {
        let mut command = ffmpeg();
        command.args(["-v", "info", "-t", LENGTH, "-i"]).arg(file(input));
        command.args(["-map", &format!("0:{index}"), "-vf", "idet", "-f", "null", "-"]);
        let program = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let Ok(mut program) = program else { return Ok(None) };
        let words = Words::of(&mut program);
        wait(&mut program, interrupts)?;
        let report = words.map(Words::join).unwrap_or_default();
        Ok(Self::from_report(&report, is_called_interlaced))
    }

    fn from_report(report: &str, is_called_interlaced: bool) -> Option<Self> {
        let repeated = counts(report, "Repeated Fields")?;
        if TELECINED.contains(&share(&repeated, &["Top", "Bottom"])) {
            return Some(Self::Telecined);
        }
        // Sharp edges of drawn pictures look interlaced, so a video that is called progressive is so.
        let kinds = counts(report, "Multi frame detection")?;
        let is_progressive = !is_called_interlaced || share(&kinds, &["Progressive"]) > PROGRESSIVE;
        Some(if is_progressive { Self::Progressive } else { Self::Interlaced })
    }

    /// FFmpeg's filters that restore whole frames without interpolation, where there are some.
    pub fn filters(self) -> Option<&'static str> {
        match self {
            Self::Progressive => Some("setfield=prog"),
            Self::Interlaced => None,
            Self::Telecined => {
                Some("fieldmatch=combmatch=full,yadif=deint=interlaced,decimate,setfield=prog")
            }
        }
    }
}

/// The counts in the last line of a report that has the `title`.
fn counts<'a>(report: &'a str, title: &str) -> Option<Vec<(&'a str, f64)>> {
    let line = report.lines().rfind(|line| line.contains(title))?;
    let (_, counts) = line.split_once(&format!("{title}:"))?;
    let words: Vec<_> = counts.split_whitespace().collect();
    let count = |pair: &[&'a str]| Some((pair[0].trim_end_matches(':'), pair[1].parse().ok()?));
    words.chunks_exact(2).map(count).collect()
}

/// The share of the counts that have one of the `names`.
fn share(counts: &[(&str, f64)], names: &[&str]) -> f64 {
    let sum = |wanted: &dyn Fn(&str) -> bool| -> f64 {
        counts.iter().filter(|(name, _)| wanted(name)).map(|(_, count)| count).sum()
    };
    sum(&|name| names.contains(&name)) / sum(&|_| true).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let report = "\
[Parsed_idet_0 @ 0x5] Repeated Fields: Neither:    90 Top:    30 Bottom:    30
[Parsed_idet_0 @ 0x5] Multi frame detection: TFF:   150 BFF:     0 Progressive:     0 Undetermined:     0";
        let repeated = counts(report, "Repeated Fields").unwrap();
        assert_eq!(repeated, [("Neither", 90.0), ("Top", 30.0), ("Bottom", 30.0)]);
        assert_eq!(share(&repeated, &["Top", "Bottom"]), 0.4);
        assert_eq!(counts(report, "Single frame detection"), None);
    }
}
