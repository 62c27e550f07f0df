// SPDX-License-Identifier: MPL-2.0

//! What is in a file, in the numbers that `starsr upscale` takes, and what its output would lack.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::media::converter::is_converted;
use crate::media::input;
use crate::media::probe::{
    Probe, flags, fraction, has_flag, is_foreign, kind, seconds, tags, word,
};
use crate::media::streams::{Container, Kind};
use crate::terminal;
use crate::upscale::Remux;
use crate::values::clock;

/// Show the streams of a file, and what an upscaled one would not keep
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The file to look at
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A stream in words.
struct Line {
    /// The kind, with its number among its kind.
    name: String,
    number: usize,
    facts: Vec<String>,
}

/// Describes the file that `args` name.
pub fn run(args: &Args) -> Result<(), String> {
    let shown = args.file.display();
    if let Some((kind, count)) = input::count_of_pictures(&args.file) {
        return Err(format!("{shown}: stands for {count} pictures ({kind}); name one of them"));
    }
    input::check(&args.file)?;
    let probe = Probe::new(&args.file).ok_or_else(|| {
        format!("{shown}: FFmpeg's ffprobe cannot read this file, or is not installed")
    })?;
    let lines = lines(&probe);
    let reader = if is_converted(&probe, None) { "FFmpeg" } else { "GStreamer" };
    let mut losses = Vec::new();
    for (extension, container) in [("mkv", Container::Matroska), ("mp4", Container::Mp4)] {
        losses.push((extension, Remux::losses(&args.file, &probe, container)?));
    }
    if args.json {
        let streams = lines.iter().map(|Line { name, number, facts }| {
            json!({ "kind": name, "number": number, "facts": facts })
        });
        let losses = losses.iter().map(|(extension, losses)| ((*extension).into(), json!(losses)));
        terminal::say(json!({
            "path": args.file.to_string_lossy(),
            "format": probe.format(),
            "seconds": probe.duration(),
            "streams": streams.collect::<Vec<_>>(),
            "chapters": probe.chapters(),
            "tags": tags_of(&probe),
            "reader": reader,
            "not_kept": losses.collect::<serde_json::Map<_, _>>(),
        }));
        return Ok(());
    }
    let length = probe.duration().map_or_else(String::new, |time| format!(", {}", clock(time)));
    terminal::say(format_args!("{shown}: {}{length}", probe.format_name()));
    for Line { name, number, facts } in &lines {
        terminal::say(format_args!("  {name} {number}: {}", facts.join(", ")));
    }
    if probe.chapters() > 0 {
        terminal::say(format_args!("  chapters: {}", probe.chapters()));
    }
    for (name, value) in tags_of(&probe) {
        terminal::say(format_args!("  {name}: {value}"));
    }
    match probe.video() {
        None => terminal::say("starsr upscale would find no video in it"),
        Some(_) => terminal::say(format_args!("starsr upscale reads it with {reader}")),
    }
    for (extension, losses) in losses.iter().filter(|_| probe.video().is_some()) {
        match losses.as_deref() {
            None => terminal::say(format_args!(
                "what an .{extension} output lacks is said when the work begins"
            )),
            Some([]) => terminal::say(format_args!("an .{extension} output keeps all streams")),
            Some(losses) => {
                terminal::say(format_args!("an .{extension} output would lack:"));
                for loss in losses {
                    terminal::say(format_args!("  {loss}"));
                }
            }
        }
    }
    Ok(())
}

/// The tags of the whole that say something about its content.
fn tags_of(probe: &Probe) -> Vec<(String, String)> {
    let mut tags = probe.tags();
    tags.retain(|(name, _)| is_foreign(name));
    tags
}

fn lines(probe: &Probe) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for stream in probe.streams() {
        let is_cover = has_flag(stream, "attached_pic");
        let name = match kind(stream) {
            Some(Kind::Video) if is_cover => "cover",
            Some(kind) => kind.word(),
            None => "attachment",
        };
        let number = 1 + lines.iter().filter(|line| line.name == name).count();
        let is_chosen = probe.video().is_some_and(|video| std::ptr::eq(video, stream));
        let mut facts = match (kind(stream), is_cover) {
            (Some(Kind::Video), false) => video(stream),
            (Some(Kind::Audio), _) => audio(stream),
            _ => vec![word(stream, "codec_name").to_owned()],
        };
        let of_stream = tags(stream);
        for wanted in ["language", "title", "filename"] {
            let tag = of_stream.iter().find(|(name, _)| name == wanted);
            facts.extend(tag.filter(|(_, value)| value != "und").map(|(_, value)| value.clone()));
        }
        if !is_cover && flags(stream) != "0" {
            facts.push(flags(stream).replace('+', ", "));
        }
        if is_chosen {
            facts.push("is upscaled".to_owned());
        }
        lines.push(Line { name: name.to_owned(), number, facts });
    }
    lines
}

/// The facts about a video that decide how it is upscaled.
fn video(stream: &Value) -> Vec<String> {
    let mut facts = vec![word(stream, "codec_name").to_owned()];
    let size = |name| stream[name].as_u64().unwrap_or(0);
    facts.push(format!("{}x{}", size("width"), size("height")));
    match word(stream, "sample_aspect_ratio") {
        "unknown" | "1:1" | "0:1" => {}
        ratio => facts.push(format!("pixels {ratio}")),
    }
    if let Some(rate) = fraction(word(stream, "avg_frame_rate")).filter(|rate| *rate > 0.0) {
        facts.push(format!("{} frames/s", (rate * 1000.0).round() / 1000.0));
    }
    if let Some(time) = seconds(&stream["duration"]) {
        facts.push(clock(time));
    }
    facts.push(word(stream, "pix_fmt").to_owned());
    for name in ["color_range", "color_space", "color_transfer"] {
        match word(stream, name) {
            "unknown" => {}
            "smpte2084" => facts.push("HDR10 (PQ)".to_owned()),
            "arib-std-b67" => facts.push("HLG".to_owned()),
            value => facts.push(value.to_owned()),
        }
    }
    match word(stream, "field_order") {
        "unknown" | "progressive" => {}
        order => facts.push(format!("interlaced ({order}): needs --deinterlace")),
    }
    let sides = stream["side_data_list"].as_array().into_iter().flatten();
    let rotations = sides.filter_map(|side| side["rotation"].as_i64());
    facts.extend(rotations.filter(|angle| *angle != 0).map(|angle| format!("rotated by {angle}°")));
    facts
}

fn audio(stream: &Value) -> Vec<String> {
    let mut facts = vec![word(stream, "codec_name").to_owned()];
    facts.push(format!("{} Hz", word(stream, "sample_rate")));
    match word(stream, "channel_layout") {
        "unknown" => facts.push(format!("{} channels", stream["channels"].as_u64().unwrap_or(0))),
        layout => facts.push(layout.to_owned()),
    }
    facts
}
