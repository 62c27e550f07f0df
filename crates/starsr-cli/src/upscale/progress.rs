// SPDX-License-Identifier: MPL-2.0

//! The progress bar, or a line now and then where there is no terminal.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Interval between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
const STEPS: u64 = 1000;

/// Shows on standard error how far the work has come.
pub struct Progress {
    bar: ProgressBar,
    lines: bool,
    started: Instant,
    last_line: Instant,
    duration: Option<gst::ClockTime>,
    frames: Option<u64>,
}

impl Progress {
    /// `duration` and `frames` describe the input, where its container states them.
    pub fn new(quiet: bool, duration: Option<gst::ClockTime>, frames: Option<u64>) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if quiet || !terminal {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
        } else if duration.is_some() {
            ProgressBar::new(STEPS)
        } else {
            ProgressBar::new_spinner()
        };
        let template =
            if duration.is_some() { "[{bar:32}] {percent:>3}% {msg}" } else { "{spinner} {msg}" };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message("starting");
        let now = Instant::now();
        Self { bar, lines: !quiet && !terminal, started: now, last_line: now, duration, frames }
    }

    /// `taken` frames have gone into starsr, `done` have come out, the last of them at `position`.
    pub fn update(&mut self, taken: u64, done: u64, position: Option<gst::ClockTime>) {
        let elapsed = self.started.elapsed();
        let share = self.share(done, position);
        let mut text = match self.frames {
            Some(frames) => format!("{done}/{} frames", frames.max(done)),
            None => format!("{done} frames"),
        };
        if done == 0 {
            text = format!("first window: {taken} frames read");
        } else {
            text += &format!(", {}", rate(done, elapsed));
            if let Some(share) = share.filter(|share| *share > 0.0) {
                let left = elapsed.as_secs_f64() * (1.0 - share) / share;
                text += &format!(", {} left", clock(left));
            }
        }
        if let Some(share) = share {
            self.bar.set_position((share * STEPS as f64) as u64);
        }
        if self.lines && self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            match share {
                Some(share) => eprintln!("{:3.0}% {text}", share * 100.0),
                None => eprintln!("{text}"),
            }
        }
        self.bar.set_message(text);
        self.bar.tick();
    }

    /// Share of the work that is done, 0..=1.
    fn share(&self, done: u64, position: Option<gst::ClockTime>) -> Option<f64> {
        let share = match (self.duration, position) {
            _ if done == 0 => 0.0,
            (Some(duration), Some(position)) if !duration.is_zero() => {
                position.nseconds() as f64 / duration.nseconds() as f64
            }
            _ => return None,
        };
        Some(share.clamp(0.0, 1.0))
    }

    /// Prints a line without disturbing the bar.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Frames a second.
pub fn rate(frames: u64, time: Duration) -> String {
    format!("{:.2} fps", frames as f64 / time.as_secs_f64().max(1e-3))
}

/// Seconds as `m:ss` or `h:mm:ss`.
pub fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}
