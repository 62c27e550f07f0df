// SPDX-License-Identifier: MPL-2.0

//! The command line, and the element's properties set from it.

use std::ffi::OsString;
use std::iter;
use std::path::PathBuf;

use clap::{Args as _, FromArgMatches};
use gst::glib;
use gst::prelude::*;

use super::choice::Choices;
use gst_video::VideoFormat;

use super::codec::Codec;
use super::raw::format as raw_output;
use crate::job::Given;
use crate::media::cut::Cut;
use crate::values::{Rate, Raw, rate, raw, time};

const EXAMPLES: &str = "\
Examples:
  starsr upscale old.mp4 new.mp4
  starsr upscale --steps 4 --quality 15 --preset slow old.mkv new.mkv
  starsr upscale --model ~/models/star-light --prompt 'a panda plays the guitar' old.mp4 new.mp4
  starsr upscale --deinterlace --model ~/models/star-light --provider cuda tape.mpg tape.mkv
  starsr upscale --set window-mode=wavefront --set noise-level=500 old.mp4 new.mp4
  starsr upscale --output-dir restored/ tape1.avi tape2.mov more-tapes/
  starsr upscale --width 1920 old.mp4 new.mp4
  starsr upscale --framerate 24 frames/%05d.png new.mp4
  starsr upscale old.png new.png
  starsr upscale old.mp4 - | ffmpeg -i - -c:v libsvtav1 new.webm
  starsr upscale --start 1:30 --duration 10 old.mp4 part.mp4
  starsr upscale --start 1:30 --preview old.mp4 look.mp4
  starsr upscale --estimate old.mp4 new.mp4
  starsr upscale --codec ffv1 old.avi master.mkv
  starsr upscale --encoder 'x265enc ! h265parse' old.mp4 new.mkv

OUTPUT appears under its name only when it is complete; until then it is a hidden file beside it.
The extension of OUTPUT selects the container: .mp4, .m4v, .mov or .mkv; .mkv holds nearly every kind of audio and subtitles.
Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
All properties of the element are listed by `gst-inspect-1.0 starsr`.";

/// Upscale the video of a file; audio and subtitles pass through unchanged
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Any file that GStreamer can read, and the file to write: .mp4, .m4v, .mov or .mkv, a picture
    /// (frame_%05d.png stands for numbered ones), or "-" for Y4M on standard output; with --output-dir
    /// any number of files and folders to read
    #[arg(required = true, value_names = ["INPUT", "OUTPUT"], num_args = 1..)]
    pub files: Vec<PathBuf>,

    /// Write the outputs to this folder, under the names of the inputs
    #[arg(short, long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Replace OUTPUT if it exists
    #[arg(short, long)]
    pub force: bool,
    /// Say what the whole would take, from a short measurement, and write nothing
    #[arg(long)]
    pub estimate: bool,
    /// Upscale this much, 5 seconds by default, beside a plain enlargement: the line between them moves
    #[arg(long, value_name = "SECONDS", value_parser = time, num_args = 0..=1, require_equals = true, default_missing_value = "5", conflicts_with = "duration")]
    pub preview: Option<f64>,
    /// Work in this folder, segment by segment: after an interruption the same command goes on
    #[arg(long, value_name = "DIR", conflicts_with_all = ["output_dir", "estimate", "preview", "raw_output"], help_heading = "Long jobs")]
    pub job: Option<PathBuf>,
    /// The same in the folder OUTPUT.job, which is removed at the end
    #[arg(long, conflicts_with_all = ["job", "output_dir", "estimate", "preview", "raw_output"], help_heading = "Long jobs")]
    pub resume: bool,
    /// Frames of a segment, at which a job can go on [default: 300, or more where windows need it]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Long jobs")]
    pub segment_length: Option<u64>,
    /// Work on the job with so many processes, which share the threads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Long jobs")]
    pub workers: Option<u32>,
    /// Work on the job with these GPUs, each with as many processes as --workers says [default: 1]
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Long jobs")]
    pub devices: Vec<u32>,
    /// The options given that change frames.
    #[arg(skip)]
    pub given: Given,

    /// Print no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Print progress and results as JSON, one object a line
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    /// Print GStreamer's details with an error
    #[arg(short, long)]
    pub verbose: bool,

    /// Folder of the model bundle [default: the built-in nano2]
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub model: Option<String>,
    /// auto, cpu, cuda, tensorrt, openvino, tensorrt-rtx, webgpu, or plugin with --set provider-library=FILE
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    pub provider: Option<String>,
    /// Upscaling factor
    #[arg(long, value_name = "N", help_heading = "Model")]
    scale: Option<String>,
    /// Width of the output in pixels; the height follows, unless it is given too
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(i32).range(1..=32768), help_heading = "Model")]
    pub width: Option<i32>,
    /// Height of the output in pixels; the width follows, unless it is given too
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(i32).range(1..=32768), help_heading = "Model")]
    pub height: Option<i32>,
    /// Model evaluations: more give more detail and take longer
    #[arg(long, value_name = "N", help_heading = "Model")]
    steps: Option<String>,
    /// Frames processed together
    #[arg(long, value_name = "N", help_heading = "Model")]
    window_length: Option<String>,
    /// Frames shared by neighbouring windows
    #[arg(long, value_name = "N", help_heading = "Model")]
    window_overlap: Option<String>,
    /// What the video shows, for a model with text condition
    #[arg(long, value_name = "TEXT", help_heading = "Model")]
    prompt: Option<String>,
    /// What the result should not look like
    #[arg(long, value_name = "TEXT", help_heading = "Model")]
    negative_prompt: Option<String>,
    /// Weight of the prompt against the negative prompt
    #[arg(long, value_name = "X", help_heading = "Model")]
    guidance_scale: Option<String>,
    /// Seed of the noise: the same seed gives the same video
    #[arg(long, value_name = "N", help_heading = "Model")]
    seed: Option<String>,
    /// Colour correction against the input: none, adain or wavelet
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    color_fix: Option<String>,
    /// 0 gives the plain upscale, 1 the model's result
    #[arg(long, value_name = "X", help_heading = "Model")]
    strength: Option<String>,
    /// 0 is closest to the input, 1 shows the most detail; for bundles with weights for both
    #[arg(long, value_name = "X", help_heading = "Model")]
    detail: Option<String>,
    /// CPU threads for the model and all work on pixels
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub threads: Option<String>,
    /// Set any other property of starsr; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value, help_heading = "Model")]
    pub set: Vec<(String, String)>,

    /// Frames a second of pictures and of --raw-input
    #[arg(long, value_name = "RATE", default_value = "25", value_parser = rate, help_heading = "Streams")]
    pub framerate: Rate,
    /// Read frames without a header, of this size and FFmpeg's pixel format, such as 640x480,yuv420p, at
    /// --framerate
    #[arg(long, value_name = "SIZE,FORMAT", value_parser = raw, conflicts_with = "no_ffmpeg", help_heading = "Streams")]
    pub raw_input: Option<Raw>,
    /// Write frames without a header to standard output, in this FFmpeg pixel format, such as yuv420p10le,
    /// instead of Y4M
    #[arg(long, value_name = "FORMAT", value_parser = raw_output, help_heading = "Streams")]
    pub raw_output: Option<VideoFormat>,
    /// Begin at this time of the input: seconds, or [H:]MM:SS
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = "Streams")]
    pub start: Option<f64>,
    /// Upscale so much of the input: seconds, or [H:]MM:SS
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = "Streams")]
    pub duration: Option<f64>,
    /// Deinterlace first
    #[arg(long, value_name = "MODE", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "double", help_heading = "Streams")]
    pub deinterlace: Option<Deinterlace>,
    /// End the output when the input has delivered nothing for this time; 0 waits for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 25, help_heading = "Streams")]
    pub stall_timeout: u64,
    /// Upscale the Nth video stream instead of the default one
    #[arg(long, value_name = "N", help_heading = "Streams")]
    pub video: Option<usize>,
    #[command(flatten)]
    pub choices: Choices,
    /// Carry streams and tags with GStreamer alone, even where FFmpeg is installed
    #[arg(long, help_heading = "Streams")]
    pub no_ffmpeg: bool,
    /// Drop audio and subtitles that OUTPUT cannot hold, instead of stopping
    #[arg(long, help_heading = "Streams")]
    pub drop_unsupported: bool,

    /// What the video is encoded as [default: h264, and h265 for HDR and for more than 8 bits]
    #[arg(long, value_name = "NAME", value_enum, help_heading = "Encoder")]
    pub codec: Option<Codec>,
    /// Constant quality, 0 is the best: to 50 with h264 [default: 18], 51 with h265 [20], 63 with av1
    /// and vp9 [24]
    #[arg(long, value_name = "CRF", value_parser = clap::value_parser!(u32).range(0..=63), help_heading = "Encoder")]
    pub quality: Option<u32>,
    /// Speed of h264 and h265: ultrafast to placebo [default: medium]
    #[arg(long, value_name = "NAME", help_heading = "Encoder")]
    pub preset: Option<String>,
    /// GStreamer description of another encoder
    #[arg(long, value_name = "DESCRIPTION", conflicts_with_all = ["codec", "quality", "preset"], help_heading = "Encoder")]
    pub encoder: Option<String>,
}

/// Splits `NAME=VALUE`.
pub fn name_and_value(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| "expected NAME=VALUE".to_owned())
}

/// What becomes of interlaced video.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Deinterlace {
    /// One frame of two fields
    Single,
    /// A frame of each field
    Double,
    /// The same, but telecined video gets its 24 frames a second back, and what is only called
    /// interlaced stays as it is
    Auto,
}

impl Args {
    /// What a command line with these options means.
    ///
    /// # Errors
    ///
    /// A sentence about an option that does not exist, or that does not take its value.
    pub fn of(options: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Self, String> {
        let command = Self::augment_args(clap::Command::new("upscale"));
        let options = options.into_iter().map(Into::into);
        let words = iter::once("upscale".into()).chain(options).chain(["-".into()]);
        command
            .try_get_matches_from(words)
            .and_then(|matches| Self::from_arg_matches(&matches))
            .map_err(|error| error.kind().to_string())
    }

    /// Whether the work is done in a job's folder.
    pub fn is_job(&self) -> bool {
        self.job.is_some() || self.resume
    }

    /// The part of the input that is wanted, where it is not all of it.
    pub fn cut(&self) -> Option<Cut> {
        let duration = self.duration.or(self.preview);
        let whole = self.start.is_none() && duration.is_none();
        (!whole).then(|| Cut { start: self.start.unwrap_or(0.0), duration })
    }

    /// Sets the properties of `starsr` that the options name.
    pub fn configure(&self, starsr: &gst::Element) -> Result<(), String> {
        let options = [
            ("model-path", &self.model),
            ("execution-provider", &self.provider),
            ("scale", &self.scale),
            ("steps", &self.steps),
            ("window-length", &self.window_length),
            ("window-overlap", &self.window_overlap),
            ("prompt", &self.prompt),
            ("negative-prompt", &self.negative_prompt),
            ("guidance-scale", &self.guidance_scale),
            ("seed", &self.seed),
            ("color-fix", &self.color_fix),
            ("strength", &self.strength),
            ("detail", &self.detail),
            ("threads", &self.threads),
        ];
        for (name, value) in options {
            if let Some(value) = value {
                set_property(starsr, name, value)?;
            }
        }
        self.set.iter().try_for_each(|(name, value)| set_property(starsr, name, value))
    }
}

/// Sets a property from text. GObject would panic on an unknown name or an unfit value, so both are
/// checked first.
pub fn set_property(element: &gst::Element, name: &str, text: &str) -> Result<(), String> {
    let factory = element.factory().map_or_else(|| element.name(), |factory| factory.name());
    let pspec = element
        .find_property(name)
        .filter(|pspec| pspec.flags().contains(glib::ParamFlags::WRITABLE))
        .filter(|pspec| !pspec.flags().contains(glib::ParamFlags::CONSTRUCT_ONLY))
        .ok_or_else(|| {
            format!(
                "{factory} has no property {name} that can be set (see gst-inspect-1.0 {factory})"
            )
        })?;
    let value = if pspec.value_type() == glib::Type::STRING {
        Some(text.to_value())
    } else {
        glib::Value::deserialize_with_pspec(text, &pspec).ok()
    };
    match value.filter(|value| in_range(&pspec, value)) {
        Some(value) => {
            element.set_property_from_value(name, &value);
            Ok(())
        }
        None => Err(format!("{name}: '{text}' is not valid, expected {}", expected(&pspec))),
    }
}

/// Calls `$body` with the spec as its own type and the type of its numbers, where it is a numeric
/// one.
macro_rules! numeric {
    ($pspec:expr, |$spec:ident, $number:ident| $body:expr) => {
        numeric!(@ $pspec, $spec, $number, $body,
            ParamSpecInt i32, ParamSpecUInt u32, ParamSpecInt64 i64, ParamSpecUInt64 u64, ParamSpecFloat f32, ParamSpecDouble f64)
    };
    (@ $pspec:expr, $spec:ident, $number:ident, $body:expr, $($class:ident $type:ident),*) => {
        $(if let Some($spec) = $pspec.downcast_ref::<glib::$class>() {
            type $number = $type;
            Some($body)
        } else)* {
            None
        }
    };
}

fn in_range(pspec: &glib::ParamSpec, value: &glib::Value) -> bool {
    numeric!(pspec, |spec, Number| value
        .get::<Number>()
        .is_ok_and(|number| (spec.minimum()..=spec.maximum()).contains(&number)))
    .unwrap_or(true)
}

/// The values that a property takes, in words.
fn expected(pspec: &glib::ParamSpec) -> String {
    if let Some(class) = glib::EnumClass::with_type(pspec.value_type()) {
        let nicks: Vec<_> = class.values().iter().map(glib::EnumValue::nick).collect();
        return format!("one of {}", nicks.join(", "));
    }
    numeric!(pspec, |spec, Number| {
        let _: Number = spec.minimum();
        let whole = if pspec.value_type() == f32::static_type()
            || pspec.value_type() == f64::static_type()
        {
            ""
        } else {
            "whole "
        };
        format!("a {whole}number from {} to {}", spec.minimum(), spec.maximum())
    })
    .unwrap_or_else(|| format!("a {}", pspec.value_type()))
}
