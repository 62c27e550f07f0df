// SPDX-License-Identifier: MPL-2.0

//! What a container can hold, and how an audio or subtitle stream gets from the input's container
//! into the output's.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use gst::prelude::*;

use super::elements::{always_pad, make};

/// The output's container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// MPEG-4, ISO/IEC 14496-12.
    Mp4,
    /// QuickTime.
    Mov,
    /// Matroska.
    Matroska,
}

impl Container {
    /// What to do about a stream that it cannot hold.
    pub fn remedy(self) -> &'static str {
        if self == Self::Matroska {
            "--drop-unsupported leaves it out"
        } else {
            "an .mkv output may, and --drop-unsupported leaves it out"
        }
    }

    /// By the extension of the output's name.
    pub fn from_path(path: &Path) -> Result<Self, String> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        match extension.as_str() {
            "mp4" | "m4v" => Ok(Self::Mp4),
            "mov" => Ok(Self::Mov),
            "mkv" => Ok(Self::Matroska),
            _ => Err(format!(
                "{}: the name must end in .mp4, .m4v, .mov or .mkv, or in a picture's extension such as .png",
                path.display()
            )),
        }
    }

    /// Name of the muxer's factory.
    pub fn muxer(self) -> &'static str {
        match self {
            Self::Mp4 => "mp4mux",
            Self::Mov => "qtmux",
            Self::Matroska => "matroskamux",
        }
    }

    /// The name users know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mp4 => "MP4",
            Self::Mov => "QuickTime",
            Self::Matroska => "Matroska",
        }
    }
}

/// What a stream of the input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Video or pictures.
    Video,
    /// Sound.
    Audio,
    /// Text or pictures shown over the video.
    Subtitle,
    /// Anything else.
    Data,
}

impl Kind {
    /// By the stream's media type.
    pub fn of(caps: &gst::Caps) -> Self {
        let name = caps.structure(0).map_or("", |structure| structure.name().as_str());
        let (class, rest) = name.split_once('/').unwrap_or((name, ""));
        match (class, rest) {
            ("video" | "image", _) => Self::Video,
            ("audio", _) => Self::Audio,
            ("text" | "subtitle" | "subpicture" | "closedcaption", _) => Self::Subtitle,
            ("application", "x-ssa" | "x-ass" | "x-usf" | "x-subtitle" | "x-subtitle-unknown") => {
                Self::Subtitle
            }
            _ => Self::Data,
        }
    }

    /// A word for messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::Video => "video",
            Self::Audio => "audio",
            Self::Subtitle => "subtitle",
            Self::Data => "data",
        }
    }
}

/// A short name for a compressed stream's media type.
pub fn media_name(caps: &gst::Caps) -> String {
    let Some(structure) = caps.structure(0) else { return "unknown".to_owned() };
    let version = structure.get::<i32>("mpegversion").unwrap_or(0);
    match structure.name().as_str() {
        "video/x-h264" => "H.264".to_owned(),
        "video/x-h265" => "HEVC".to_owned(),
        "video/mpeg" => format!("MPEG-{version}"),
        "audio/mpeg" if version == 1 => "MPEG audio".to_owned(),
        "audio/mpeg" => "AAC".to_owned(),
        "video/x-raw" => "uncompressed".to_owned(),
        name => {
            let short = name.split_once('/').map_or(name, |(_, short)| short);
            short.strip_prefix("x-").unwrap_or(short).to_uppercase()
        }
    }
}

/// Whether the video is one of pictures, as cameras put beside the other.
pub fn is_picture(caps: &gst::Caps) -> bool {
    caps.structure(0).is_some_and(|structure| structure.name().starts_with("image/"))
}

/// How a stream gets into the muxer.
pub struct Passage {
    template: gst::PadTemplate,
    caps: gst::Caps,
    repackage: Option<Repackage>,
}

/// A change of packaging that leaves the content as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repackage {
    /// AAC with a header on each packet to AAC without.
    Aac,
    /// Text with Pango mark-up, as demuxers give it, to the text that containers store.
    Markup,
}

/// Finds the way of a stream with `caps` into `muxer`; `None` where the container cannot hold it.
pub fn passage(muxer: &gst::Element, caps: &gst::Caps) -> Option<Passage> {
    let mut caps = caps.clone();
    let mut repackage = None;
    if let Some(structure) = caps.make_mut().structure_mut(0) {
        if structure.name() == "audio/mpeg"
            && structure.get::<i32>("mpegversion").is_ok_and(|version| version != 1)
            && structure.get::<&str>("stream-format").is_ok_and(|format| format != "raw")
        {
            structure.set("stream-format", "raw");
            repackage = Some(Repackage::Aac);
        } else if structure.name() == "text/x-raw"
            && structure.get::<&str>("format").is_ok_and(|format| format == "pango-markup")
        {
            structure.set("format", "utf8");
            repackage = Some(Repackage::Markup);
        }
    }
    let template = muxer.pad_template_list().into_iter().find(|template| {
        template.direction() == gst::PadDirection::Sink && template.caps().can_intersect(&caps)
    })?;
    Some(Passage { template, caps, repackage })
}

impl Passage {
    /// Requests the muxer's pad and puts what is needed in front of it; gives the pad to link the
    /// stream to.
    pub fn build(
        &self,
        pipeline: &gst::Pipeline,
        muxer: &gst::Element,
        container: Container,
    ) -> Result<gst::Pad, String> {
        let pad = muxer
            .request_pad(&self.template, None, Some(&self.caps))
            .ok_or_else(|| format!("{} takes no further {} stream", container.name(), self.caps))?;
        let element = match self.repackage {
            None => return Ok(pad),
            Some(Repackage::Aac) => make("aacparse")?,
            Some(Repackage::Markup) => {
                let setter = make("capssetter")?;
                setter.set_property(
                    "caps",
                    gst::Caps::builder("text/x-raw").field("format", "utf8").build(),
                );
                setter
            }
        };
        pipeline.add(&element).map_err(|error| error.to_string())?;
        let (sink, src) = (always_pad(&element, "sink")?, always_pad(&element, "src")?);
        src.link(&pad).map_err(|error| format!("{}: {error}", self.caps))?;
        if self.repackage == Some(Repackage::Markup) {
            store_text(&src, container);
        }
        element.sync_state_with_parent().map_err(|error| error.to_string())?;
        Ok(sink)
    }
}

/// Turns marked-up text that leaves `pad` back into stored text.
fn store_text(pad: &gst::Pad, container: Container) {
    let warned = AtomicBool::new(false);
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let Some(buffer) = info.buffer_mut() else { return gst::PadProbeReturn::Ok };
        let text = match buffer.map_readable() {
            Ok(map) => stored_text(&map, container),
            Err(_) => return gst::PadProbeReturn::Ok,
        };
        if let Some(Stored { text, lost_formatting }) = text {
            let mut stored = gst::Buffer::from_slice(text);
            let whole = ..;
            // Metadata only: the new text is the memory.
            if let Some(stored) = stored.get_mut()
                && buffer.copy_into(stored, gst::BUFFER_COPY_METADATA, whole).is_ok()
                && lost_formatting
                && !warned.swap(true, Ordering::Relaxed)
                && let Some(element) = pad.parent_element()
            {
                gst::element_warning!(
                    element,
                    gst::StreamError::Format,
                    (
                        "{} holds plain subtitles: bold, italics and colours are lost; .mkv keeps them",
                        container.name()
                    )
                );
            }
            *buffer = stored;
        }
        gst::PadProbeReturn::Ok
    });
}

#[derive(Debug, PartialEq, Eq)]
struct Stored {
    text: Vec<u8>,
    lost_formatting: bool,
}

/// The text to store where it differs from `markup`. Demuxers escape text that has no tags so that
/// it is valid mark-up; text with tags they give as it was stored, which Matroska takes back and
/// the others cannot hold.
fn stored_text(markup: &[u8], container: Container) -> Option<Stored> {
    let markup = std::str::from_utf8(markup).ok()?;
    let tagged = markup.contains('<');
    if tagged && container == Container::Matroska || !tagged && !markup.contains('&') {
        return None;
    }
    let mut text = String::with_capacity(markup.len());
    let mut rest = markup;
    while let Some(start) = rest.find('<') {
        let Some(end) = rest[start..].find('>') else { break };
        text.push_str(&rest[..start]);
        rest = &rest[start + end + 1..];
    }
    text.push_str(rest);
    let entities = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&#39;", "'"),
        ("&amp;", "&"),
    ];
    for (entity, character) in entities {
        text = text.replace(entity, character);
    }
    Some(Stored { text: text.into_bytes(), lost_formatting: tagged })
}
