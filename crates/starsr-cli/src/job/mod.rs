// SPDX-License-Identifier: MPL-2.0

//! Films in segments: a folder with a plan, workers on any number of machines, and parts that are
//! joined at the end.

use std::path::PathBuf;

use crate::interrupts::{Interrupts, Stop};
use crate::terminal;
use crate::upscale::Args as Options;
use crate::upscale::progress::Progress;

mod claims;
mod decode;
mod frames;
mod given;
mod identity;
pub mod join;
mod make;
mod part;
mod plan;
mod restore;
mod segments;
pub mod status;
mod store;
pub mod supervise;
pub mod work;

pub use given::Given;
use plan::Job;

/// Plan the work on a film, which is then done in segments
#[derive(Debug, Clone, clap::Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub options: Options,
}

/// The options of `starsr upscale` that are of no use to `starsr plan`.
pub const NOT_PLANNED: [&str; 11] = [
    "output_dir",
    "force",
    "estimate",
    "preview",
    "raw_output",
    "provider",
    "threads",
    "resume",
    "workers",
    "devices",
    "verbose",
];

/// Brings GStreamer up.
fn start() -> Result<(), String> {
    gst::init().map_err(|error| error.to_string())?;
    gststarsr::plugin_register_static().map_err(|error| error.to_string())
}

/// Plans what `args` name.
pub fn plan(args: &PlanArgs) -> Result<(), Stop> {
    let options = &args.options;
    let input: PathBuf = match options.files.as_slice() {
        [input] => input.clone(),
        _ => return Err("starsr plan takes one INPUT".to_owned().into()),
    };
    let folder = options.job.clone();
    let folder = folder.ok_or_else(|| "name a folder for the job with --job DIR".to_owned())?;
    start()?;
    let interrupts = Interrupts::catch()?;
    if Job::exists(&folder) {
        let job = Job::open(&folder)?;
        supervise::check_same(&job, options, &input)?;
        if !options.quiet {
            terminal::say(format_args!("{}: the plan is there already", folder.display()));
        }
        return Ok(());
    }
    let mut progress = Progress::new(options, false);
    make::make_plan(options, &input, &folder, &mut progress, &interrupts)?;
    supervise::describe(&Job::open(&folder)?, &progress);
    Ok(())
}
