// SPDX-License-Identifier: MPL-2.0

//! What the user is shown: lines, a progress bar, or JSON for programs.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::args::Args;
use crate::terminal;
use crate::values::{clock, counted};

/// Interval between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Interval between two JSON objects.
const JSON_INTERVAL: Duration = Duration::from_secs(1);
const STEPS: u64 = 1000;

/// How far the work has come.
#[derive(Debug, Clone, Copy, Default)]
pub struct State {
    /// Frames that have gone into starsr, and those that have come out.
    pub taken: u64,
    pub done: u64,
    /// Frames of those that came out in earlier runs.
    pub before: u64,
    /// The end of the last that came out.
    pub position: Option<gst::ClockTime>,
    /// Runs of the model, and those that a window takes.
    pub evaluations: u64,
    pub window_evaluations: u64,
}

/// Shows how far the work on one file has come.
pub struct Progress {
    show: Show,
    started: Instant,
    /// When the first frame was taken.
    began: Option<Instant>,
    last: Instant,
    duration: Option<gst::ClockTime>,
    frames: Option<u64>,
}

/// How it is shown.
enum Show {
    Nothing,
    /// A bar on the terminal.
    Bar(ProgressBar),
    /// A line now and then.
    Lines,
    /// The same, where standard output is taken.
    ErrorLines,
    /// Objects on standard output, one a line.
    Json,
}

/// Prints an event of `kind` as one line of JSON.
pub fn print_json(kind: &str, mut fields: Value) {
    fields["event"] = kind.into();
    terminal::say(fields);
}

impl Progress {
    /// Nothing goes to standard output if that `is_taken`.
    pub fn new(args: &Args, is_taken: bool) -> Self {
        let show = if args.json {
            Show::Json
        } else if args.quiet {
            Show::Nothing
        } else if std::io::stderr().is_terminal() && !is_taken {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_message("starting");
            Show::Bar(bar)
        } else if is_taken {
            Show::ErrorLines
        } else {
            Show::Lines
        };
        let now = Instant::now();
        Self { show, started: now, began: None, last: now, duration: None, frames: None }
    }

    /// One that shows nothing but warnings.
    pub fn silent() -> Self {
        let now = Instant::now();
        let show = Show::Nothing;
        Self { show, started: now, began: None, last: now, duration: None, frames: None }
    }

    /// Takes the length of the input, where its container states it.
    pub fn expect(&mut self, duration: Option<gst::ClockTime>, frames: Option<u64>) {
        (self.duration, self.frames) = (duration, frames);
        if let (Show::Bar(bar), Some(_)) = (&self.show, duration) {
            bar.set_length(STEPS);
            if let Ok(style) = ProgressStyle::with_template("[{bar:32}] {percent:>3}% {msg}") {
                bar.set_style(style.progress_chars("=> "));
            }
        }
    }

    /// Takes the number of frames, which is all that is known of a job's length.
    pub fn expect_frames(&mut self, frames: u64) {
        self.expect(Some(gst::ClockTime::ZERO), Some(frames));
        (self.duration, self.started) = (None, Instant::now());
    }

    /// Says what will be done: a sentence, or `fields` of an event of `kind`.
    pub fn announce(&self, sentence: &str, kind: &str, fields: Value) {
        match &self.show {
            Show::Nothing => {}
            Show::Bar(bar) => bar.suspend(|| terminal::say(sentence)),
            Show::Lines => terminal::say(sentence),
            Show::ErrorLines => terminal::warn(sentence),
            Show::Json => print_json(kind, fields),
        }
    }

    /// Shows that the work has come to `state`.
    pub fn update(&mut self, state: State) {
        let State { taken, done, before, evaluations, window_evaluations, .. } = state;
        if taken > 0 {
            self.began.get_or_insert_with(Instant::now);
        }
        let share = self.share(state);
        let elapsed = self.started.elapsed();
        let left = self.left(state, share);
        if let Show::Json = self.show {
            if self.last.elapsed() >= JSON_INTERVAL {
                self.last = Instant::now();
                let fields = json!({
                    "frames_in": taken,
                    "frames_out": done,
                    "frames": self.frames,
                    "evaluations": evaluations,
                    "window_evaluations": window_evaluations,
                    "share": share,
                    "seconds": elapsed.as_secs_f64(),
                    "seconds_left": left,
                });
                print_json("progress", fields);
            }
            return;
        }
        let mut text = match self.frames {
            _ if done == 0 => format!("first window: {} read", counted(taken, "frame")),
            Some(frames) => {
                format!("{done}/{} frames, {}", frames.max(done), rate(done - before, elapsed))
            }
            None => format!("{}, {}", counted(done, "frame"), rate(done - before, elapsed)),
        };
        if done == 0 {
            if evaluations > window_evaluations {
                text += &format!(", {evaluations} evaluations");
            } else if evaluations > 0 {
                text += &format!(", evaluation {evaluations} of {window_evaluations}");
            }
            text += &format!(", {}", clock(elapsed.as_secs_f64()));
        }
        if let Some(left) = left {
            text += &format!(", {} left", clock(left));
        }
        match &self.show {
            Show::Bar(bar) => {
                if let Some(share) = share {
                    bar.set_position((share * STEPS as f64) as u64);
                }
                bar.set_message(text);
                bar.tick();
            }
            Show::Lines | Show::ErrorLines if self.last.elapsed() >= LINE_INTERVAL => {
                self.last = Instant::now();
                match share {
                    Some(share) => terminal::warn(format_args!("{:3.0}% {text}", share * 100.0)),
                    None => terminal::warn(text),
                }
            }
            _ => {}
        }
    }

    /// Share of the work that is done, 0..=1.
    fn share(&self, state: State) -> Option<f64> {
        let share = match (self.duration, state.position) {
            _ if state.done == 0 => self.share_of_first_window(state).unwrap_or(0.0),
            (Some(duration), Some(position)) if !duration.is_zero() => {
                position.nseconds() as f64 / duration.nseconds() as f64
            }
            (None, None) => state.done as f64 / self.frames.filter(|frames| *frames > 0)? as f64,
            _ => return None,
        };
        Some(share.clamp(0.0, 1.0))
    }

    /// The same while no frame has come out. What windows share, and a wavefront, are left out of
    /// account.
    fn share_of_first_window(&self, state: State) -> Option<f64> {
        let State { taken, evaluations, window_evaluations, .. } = state;
        let frames = self.frames.filter(|frames| *frames > 0)?;
        let window = Some(window_evaluations).filter(|all| *all > 0 && evaluations <= *all)?;
        Some(evaluations as f64 / window as f64 * taken as f64 / frames as f64)
    }

    /// Seconds that the rest will take.
    fn left(&self, state: State, share: Option<f64>) -> Option<f64> {
        // Loading the model counts only where nothing better is known.
        let since = if state.done == 0 { self.began? } else { self.started };
        let share = share.filter(|share| *share > 0.0)?;
        // What earlier runs did took no time of this one.
        let before = self.frames.map_or(0.0, |frames| state.before as f64 / frames.max(1) as f64);
        let here = Some(share - before).filter(|here| *here > 0.0)?;
        Some(since.elapsed().as_secs_f64() * (1.0 - share) / here)
    }

    /// Prints a warning or a loss without disturbing the bar.
    pub fn say(&self, line: &str) {
        match &self.show {
            Show::Bar(bar) => bar.suspend(|| terminal::warn(format_args!("starsr: {line}"))),
            Show::Nothing | Show::Lines | Show::ErrorLines => {
                terminal::warn(format_args!("starsr: {line}"));
            }
            Show::Json => print_json("message", json!({ "text": line })),
        }
    }

    /// Says that `frames` of `size` are in the file at `path`.
    pub fn finish(&self, path: &Path, frames: u64, size: (u32, u32)) {
        let (time, (width, height)) = (self.started.elapsed(), size);
        let fields = json!({
            "path": path.to_string_lossy(),
            "frames": frames,
            "width": width,
            "height": height,
            "seconds": time.as_secs_f64(),
        });
        let (rate, time) = (rate(frames, time), clock(time.as_secs_f64()));
        let path = path.display();
        let frames = counted(frames, "frame");
        let sentence = format!("{path}: {frames}, {width}x{height}, {time} ({rate})");
        self.announce(&sentence, "done", fields);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Show::Bar(bar) = &self.show {
            bar.finish_and_clear();
        }
    }
}

/// Frames a second.
fn rate(frames: u64, time: Duration) -> String {
    format!("{:.2} fps", frames as f64 / time.as_secs_f64().max(1e-3))
}
