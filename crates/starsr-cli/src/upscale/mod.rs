// SPDX-License-Identifier: MPL-2.0

//! From files to files: the video goes through the element `starsr`, the rest goes beside it
//! untouched.

use std::path::PathBuf;

use clap::CommandFactory;
use gst::prelude::*;
use serde_json::json;

pub mod args;
pub mod batch;
mod choice;
pub mod codec;
pub mod encoder;
pub mod encoding;
pub mod file;
pub mod luminance;
pub mod messages;
mod pictures;
pub mod pipeline;
mod preview;
pub mod progress;
mod raw;
pub mod remux;
mod steady;

use crate::interrupts::{Interrupts, Stop};
use crate::job::supervise;
use crate::media::elements;
use crate::terminal;
pub use args::{Args, name_and_value, set_property};
use batch::Job;
pub use remux::Remux;

/// Upscales the files that `args` name.
pub fn run(args: &Args) -> Result<(), Stop> {
    let jobs = match (&args.output_dir, args.files.as_slice()) {
        (Some(folder), inputs) => batch::jobs(inputs, folder)?,
        (None, [input, output]) => {
            let is_standard = input.as_os_str() == "-";
            let input = if is_standard { PathBuf::from("/dev/stdin") } else { input.clone() };
            // For FFmpeg, whose own standard input is another one.
            let standard = format!("/proc/{}/fd/0", std::process::id());
            let source = if is_standard { standard.into() } else { input.clone() };
            vec![Job { source, input, output: output.clone() }]
        }
        (None, files) => {
            let reason = if files.len() < 2 {
                "OUTPUT is missing: name it, or a folder with --output-dir"
            } else {
                "several inputs need a folder for their outputs: name it with --output-dir"
            };
            crate::Cli::command().error(clap::error::ErrorKind::WrongNumberOfValues, reason).exit()
        }
    };
    if !args.is_job()
        && (args.workers.is_some() || !args.devices.is_empty() || args.segment_length.is_some())
    {
        let reason =
            "--workers, --devices and --segment-length are for a job: add --job DIR or --resume";
        crate::Cli::command().error(clap::error::ErrorKind::MissingRequiredArgument, reason).exit()
    }
    gst::init().map_err(|error| error.to_string())?;
    gststarsr::plugin_register_static().map_err(|error| error.to_string())?;
    let interrupts = Interrupts::catch()?;
    let count = jobs.len();
    // Elements with the same settings share a loaded model for as long as one of them is started.
    let keeper = if count > 1 { Keeper::new(args) } else { None };
    let mut failures = Vec::new();
    for (number, job) in jobs.iter().enumerate() {
        if count > 1 && !args.quiet && !args.json {
            let input = job.input.display();
            terminal::say(format_args!("{} of {count}: {input}", number + 1));
        }
        let done = if args.is_job() {
            supervise::run(args, job, &interrupts)
        } else {
            file::run(args, job, &interrupts)
        };
        match done {
            Ok(()) => {}
            Err(Stop::Failed(reason)) => {
                if args.json {
                    let input = job.input.to_string_lossy();
                    progress::print_json("error", json!({ "path": input, "text": reason }));
                }
                failures.push(reason);
            }
            Err(Stop::Interrupted) => return Err(Stop::Interrupted),
        }
    }
    drop(keeper);
    // One file's failure is the program's; several are listed at the end, where they are seen.
    match failures.as_slice() {
        [] => Ok(()),
        [reason] if count == 1 => Err(reason.clone().into()),
        _ => {
            for reason in &failures {
                terminal::warn(format_args!("starsr: {reason}"));
            }
            Err(format!("{} of {count} files failed", failures.len()).into())
        }
    }
}

/// An element that keeps the model loaded from one file to the next.
struct Keeper(gst::Element);

impl Keeper {
    /// `None` where the model cannot be loaded, which each file will say.
    fn new(args: &Args) -> Option<Self> {
        let keeper = Self(elements::make("starsr").ok()?);
        args.configure(&keeper.0).ok()?;
        keeper.0.set_state(gst::State::Paused).ok()?;
        Some(keeper)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // It only releases the model.
        let _ = self.0.set_state(gst::State::Null);
    }
}
