// SPDX-License-Identifier: MPL-2.0

//! How far a job has come.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::json;

use super::claims;
use super::plan::{Job, VERSION};
use super::work::{Failed, checked};
use crate::terminal;
use crate::values::{clock, counted};

/// Show how far a job has come
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Folder of the job
    #[arg(long, value_name = "DIR")]
    job: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A segment that somebody works on.
#[derive(Debug, Clone, Serialize)]
pub struct Running {
    pub segment: usize,
    /// The host and the process.
    pub worker: String,
    pub frames: u64,
}

/// A segment that failed.
#[derive(Debug, Clone, Serialize)]
pub struct Failing {
    pub segment: usize,
    pub attempts: u64,
    pub error: String,
    /// Whether it is not tried again.
    pub is_final: bool,
}

/// How far a job has come.
#[derive(Debug, Clone, Default)]
pub struct Status {
    pub segments: usize,
    pub frames: u64,
    /// Frames of finished parts, and the seconds that workers took for them.
    pub frames_done: u64,
    pub seconds: f64,
    pub done: Vec<usize>,
    pub waiting: Vec<usize>,
    pub running: Vec<Running>,
    pub failed: Vec<Failing>,
    pub damaged: Vec<usize>,
}

impl Status {
    pub fn of(job: &Job) -> Result<Self, String> {
        let mut this = Self {
            segments: job.plan.segments.len(),
            frames: job.plan.video.frames,
            ..Self::default()
        };
        let mut claims = claims::all(&job.claims())?.into_iter().peekable();
        for segment in 0..this.segments {
            while claims.next_if(|(claimed, _)| *claimed < segment).is_some() {}
            let holder = claims.next_if(|(claimed, _)| *claimed == segment);
            match checked(job, segment, false) {
                Ok(Some(about)) => {
                    this.done.push(segment);
                    this.frames_done += about.frames;
                    this.seconds += about.milliseconds as f64 / 1000.0;
                    continue;
                }
                Ok(None) => {}
                Err(_) => this.damaged.push(segment),
            }
            if let Some((_, holder)) = holder {
                let (worker, frames) =
                    holder.map_or_else(Default::default, |holder| (holder.worker, holder.frames));
                this.running.push(Running { segment, worker, frames });
            } else if let Some(failed) = Failed::of(job, segment) {
                let is_final = failed.is_final();
                let Failed { attempts, error } = failed;
                this.failed.push(Failing { segment, attempts, error, is_final });
            } else {
                this.waiting.push(segment);
            }
        }
        Ok(this)
    }

    /// Frames that are done, in unfinished segments too.
    pub fn frames_so_far(&self) -> u64 {
        self.frames_done + self.running.iter().map(|running| running.frames).sum::<u64>()
    }

    /// Frames a second of all workers at work together.
    pub fn rate(&self) -> Option<f64> {
        let one = (self.seconds > 0.0).then(|| self.frames_done as f64 / self.seconds)?;
        Some(one * self.running.len() as f64).filter(|rate| *rate > 0.0)
    }

    /// Seconds that the rest will take.
    pub fn left(&self) -> Option<f64> {
        Some(self.frames.saturating_sub(self.frames_so_far()) as f64 / self.rate()?)
    }

    fn state(&self) -> &'static str {
        if self.done.len() == self.segments {
            "done"
        } else if !self.running.is_empty() {
            "running"
        } else if self.waiting.is_empty() && self.failed.iter().all(|failed| failed.is_final) {
            "failed"
        } else {
            "waiting"
        }
    }
}

/// Prints the status of a job.
pub fn run(args: &Args) -> Result<(), String> {
    gst::init().map_err(|error| error.to_string())?;
    let job = Job::open(&args.job)?;
    let status = Status::of(&job)?;
    let folder = args.job.display();
    if args.json {
        terminal::say(json!({
            "version": VERSION,
            "state": status.state(),
            "input": job.plan.input.path.to_string_lossy(),
            "model": job.plan.model.name,
            "segments": status.segments,
            "frames": status.frames,
            "frames_done": status.frames_so_far(),
            "frames_per_second": status.rate(),
            "seconds_left": status.left(),
            "worker_seconds": status.seconds,
            "done": status.done,
            "running": status.running,
            "waiting": status.waiting,
            "failed": status.failed,
            "damaged": status.damaged,
        }));
        return Ok(());
    }
    let share = status.frames_so_far() as f64 / status.frames.max(1) as f64 * 100.0;
    let mut line = format!(
        "{folder}: {} of {}, {} of {} ({share:.0}%)",
        status.done.len(),
        counted(status.segments as u64, "segment"),
        status.frames_so_far(),
        counted(status.frames, "frame")
    );
    if let Some((rate, left)) = status.rate().zip(status.left()) {
        line += &format!(", {rate:.2} fps, {} left", clock(left));
    }
    terminal::say(line);
    for Running { segment, worker, frames } in &status.running {
        terminal::say(format_args!("  segment {segment}: {worker}, {}", counted(*frames, "frame")));
    }
    for Failing { segment, attempts, error, .. } in &status.failed {
        let times = counted(*attempts, "attempt");
        terminal::say(format_args!("  segment {segment} failed ({times}): {error}"));
    }
    for segment in &status.damaged {
        terminal::say(format_args!("  segment {segment}: its part is damaged"));
    }
    Ok(())
}
