// SPDX-License-Identifier: MPL-2.0

//! A page that shows two videos beside each other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use indicatif::ProgressBar;
use serde_json::{Value, json};

mod color;
mod encode;
mod figures;
mod matching;
mod page;
mod read;

use crate::interrupts::{Interrupts, Stop};
use crate::media::cut::Cut;
use crate::media::ffmpeg::is_installed;
use crate::output::{Finished, Output};
use crate::terminal;
use crate::values::{Rate, counted, rate, time};
use encode::{Encoder, Format};
use figures::Frame;
use matching::{Matching, matching};
use page::{Page, failed};
use read::Source;

const EXAMPLES: &str = "\
Examples:
  starsr compare old.mp4 new.mp4
  starsr compare --open --frames 48 old.mp4 new.mp4
  starsr compare --start 1:30 --duration 2 nano.mkv light.mkv --output models.html
  starsr compare --start 1:30 --start-b 0 old.mp4 part.mp4
  starsr compare old.png new.png

Frames are matched by their times, which count from the first frame shown of each file. The smaller picture is enlarged to the size of the larger one.
Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.";

/// Size in MB above which browsers may refuse the page.
const LARGE: f64 = 500.0;

/// Write a page for a browser on which two videos or pictures can be compared
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A video, a picture, or numbered pictures such as frame_%05d.png; usually what was upscaled
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The same in another version, of any size
    #[arg(value_name = "B")]
    b: PathBuf,
    /// The page
    #[arg(short, long, value_name = "FILE", default_value = "compare.html")]
    output: PathBuf,
    /// Replace the page if it exists
    #[arg(short, long)]
    force: bool,
    /// Open the page in a browser
    #[arg(long)]
    open: bool,
    /// Show at most so many frames, evenly spread
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    frames: u32,
    /// Begin at this time: seconds, or [H:]MM:SS
    #[arg(long, value_name = "TIME", value_parser = time)]
    start: Option<f64>,
    /// Begin at this time of B [default: that of --start]
    #[arg(long, value_name = "TIME", value_parser = time)]
    start_b: Option<f64>,
    /// Compare so much: seconds, or [H:]MM:SS
    #[arg(long, value_name = "TIME", value_parser = time)]
    duration: Option<f64>,
    /// Store the frames without loss, however many and large they are
    #[arg(long)]
    lossless: bool,
    /// Frames a second of numbered pictures
    #[arg(long, value_name = "RATE", default_value = "25", value_parser = rate)]
    framerate: Rate,
}

impl Args {
    /// The part of a file that begins at `start`, where it is not all of it.
    fn cut(&self, start: Option<f64>) -> Option<Cut> {
        let whole = start.is_none() && self.duration.is_none();
        (!whole).then(|| Cut { start: start.unwrap_or(0.0), duration: self.duration })
    }
}

/// Writes the page that `args` ask for.
pub fn run(args: &Args) -> Result<(), Stop> {
    if args.open && !is_installed("xdg-open") {
        let advice = "install xdg-utils, or leave out --open and open the page in a browser";
        Err(format!("--open: xdg-open is not installed; {advice}"))?;
    }
    gst::init().map_err(|error| error.to_string())?;
    let interrupts = Interrupts::catch()?;
    let a = Source::new(&args.a, args.cut(args.start), args.framerate)?;
    let b = Source::new(&args.b, args.cut(args.start_b.or(args.start)), args.framerate)?;
    let output = Output::create(&[&args.a, &args.b], &args.output, args.force)?;
    interrupts.remove_at_once(output.part());

    // Shows nothing where standard error is no terminal, and vanishes in the end.
    let progress = ProgressBar::new_spinner();
    let a_times = a.times(&progress, &interrupts.count)?;
    let b_times = b.times(&progress, &interrupts.count)?;
    let matching = matching(&a_times, &b_times, args.frames as usize);
    let notes = notes(&matching);
    let work = Work { args, a: &a, b: &b, a_times: &a_times, b_times: &b_times };
    let format = work.write(&matching, &notes, output.part(), &progress, &interrupts)?;
    progress.finish_and_clear();

    let Finished { path, displaced } = output.finish()?;
    if let Some(reason) = displaced {
        let output = args.output.display();
        terminal::say(format_args!("{output}: {reason}; the page is {}", path.display()));
    }
    for note in notes {
        terminal::say(note);
    }
    let size = fs::metadata(&path).map_or(0, |file| file.len()) as f64 / 1e6;
    terminal::say(format_args!(
        "{}: {} of {} frames, {size:.1} MB, {}",
        path.display(),
        matching.pairs.len(),
        matching.common,
        format.words()
    ));
    if size > LARGE {
        terminal::say("browsers may refuse a page of this size; choose fewer --frames");
    }
    if args.open { open(&path).map_err(Stop::Failed) } else { Ok(()) }
}

/// What one file lacks of the other, a sentence each.
fn notes(matching: &Matching) -> Vec<String> {
    let Matching { common, lacking, surplus, a_rest, b_rest, .. } = *matching;
    let rest = |from: &str, to: &str, time: u64| {
        (time > 0)
            .then(|| format!("{from} goes on for {:.2} s after the end of {to}", time as f64 / 1e9))
    };
    let lacks = (lacking > 0)
        .then(|| format!("B has no frame at the time of {lacking} of the {common} frames of A"));
    let more = (surplus > 0).then(|| {
        let more = counted(surplus as u64, "more frame");
        format!("B has {more}, at times at which A has none")
    });
    [lacks, more, rest("A", "B", a_rest), rest("B", "A", b_rest)].into_iter().flatten().collect()
}

/// Two files whose frames are known.
struct Work<'a> {
    args: &'a Args,
    a: &'a Source,
    b: &'a Source,
    a_times: &'a [u64],
    b_times: &'a [u64],
}

impl Work<'_> {
    /// Writes the page to `file`, holding one frame of each file at a time.
    fn write(
        &self,
        matching: &Matching,
        notes: &[String],
        file: &Path,
        progress: &ProgressBar,
        interrupts: &Interrupts,
    ) -> Result<Format, Stop> {
        let pairs = &matching.pairs;
        let failed = failed(&self.args.output);
        let mut a_wanted: Vec<_> = pairs.iter().map(|pair| pair.a).collect();
        let mut b_wanted: Vec<_> = pairs.iter().filter_map(|pair| pair.b).collect();
        a_wanted.dedup();
        b_wanted.dedup();
        let mut a = self.a.pictures(a_wanted, &interrupts.count)?;
        let mut b = self.b.pictures(b_wanted, &interrupts.count)?;
        let mut page = Page::create(file).map_err(&failed)?;
        let mut encoders = None;
        let mut last_b: Option<(usize, Frame, String)> = None;
        let mut shapes = None;
        for (index, pair) in pairs.iter().enumerate() {
            progress.set_message(format!("comparing frame {} of {}", index + 1, pairs.len()));
            let a_frame = a.picture(&interrupts.count)?;
            // Two frames of A may have the same one beside them.
            if let Some(number) = pair.b
                && last_b.as_ref().is_none_or(|(last, ..)| *last != number)
            {
                last_b = Some((number, b.picture(&interrupts.count)?, String::new()));
            }
            let b_frame = last_b.as_mut().filter(|_| pair.b.is_some());
            if encoders.is_none() {
                let b_frame = b_frame.as_ref().map_or(&a_frame, |(_, frame, _)| frame);
                let sizes = [a_frame.size(), b_frame.size()];
                shapes = Some([(sizes[0], a_frame.shape), (sizes[1], b_frame.shape)]);
                let format = Format::choose(self.args.lossless, sizes, pairs.len());
                encoders = Some((format, Encoder::new(format)?, Encoder::new(format)?));
            }
            let Some((_, a_encoder, b_encoder)) = &encoders else { continue };
            let mut entry = json!({
                "time": seconds(self.a_times, pair.a),
                "a": a_encoder.encode(&a_frame)?,
            });
            if let Some((number, frame, picture)) = b_frame {
                if picture.is_empty() {
                    *picture = b_encoder.encode(frame)?;
                }
                let figures = a_frame.figures(frame)?;
                entry["b"] = picture.as_str().into();
                entry["bTime"] = seconds(self.b_times, *number);
                entry["psnr"] = rounded(figures.psnr);
                entry["difference"] = rounded(figures.difference);
                entry["isEqual"] = (figures.difference == 0.0).into();
            }
            page.frame(&entry).map_err(&failed)?;
        }
        let (Some((format, ..)), Some([a_shape, b_shape])) = (encoders, shapes) else {
            return Err("the files have no frame at the same time; see --start and --start-b"
                .to_owned()
                .into());
        };
        let [a_name, b_name] = names(&self.args.a, &self.args.b);
        page.finish(&json!({
            "a": about(a_name, a_shape, self.a_times),
            "b": about(b_name, b_shape, self.b_times),
            "common": matching.common,
            "stored": format.words(),
            "isLossless": format != Format::Jpeg,
            "notes": notes,
        }))
        .map_err(&failed)?;
        Ok(format)
    }
}

/// What the page says of a file.
fn about(name: String, ((width, height), shape): ((u32, u32), f64), times: &[u64]) -> Value {
    json!({ "name": name, "width": width, "height": height, "shape": shape, "frames": times.len() })
}

fn seconds(times: &[u64], number: usize) -> Value {
    rounded(times.get(number).map_or(0.0, |time| *time as f64 / 1e9))
}

fn rounded(value: f64) -> Value {
    ((value * 1e4).round() / 1e4).into()
}

/// The names of the files, or their paths where the names are the same.
fn names(a: &Path, b: &Path) -> [String; 2] {
    let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).display().to_string();
    if name(a) == name(b) {
        [a.display().to_string(), b.display().to_string()]
    } else {
        [name(a), name(b)]
    }
}

/// Opens the page in the desktop's browser, without waiting for it.
fn open(page: &Path) -> Result<(), String> {
    let mut command = Command::new("xdg-open");
    command.arg(fs::canonicalize(page).unwrap_or(page.to_owned()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map(|_| ()).map_err(|error| {
        let page = page.display();
        format!("xdg-open cannot be run: {error}; open {page} in a browser")
    })
}
